"""Tensor-parallel shards: found in a folder, merged into whole tensors, split again, and deltas added to a base."""

import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from sphinx_jax.checkpoint.foreign import files
from sphinx_jax.checkpoint.foreign.pth import open_pth
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

_KINDS = {  # How the files of a shard set are named; groups: rank, and how many where the name says it.
  'official': re.compile(r'consolidated\.(\d+)-of-(\d+)\.model\.pth'),
  'meta': re.compile(r'consolidated\.(\d+)\.pth'),
  'diff': re.compile(r'.*?(\d+)-of-(\d+)\.model-diff\.pth'),
}
PREFIX = 'llma.'  # Of the official code; Meta's own files lack it.
_SPLIT = [  # (keys, dimension); all else is replicated. fairscale's ColumnParallel, RowParallel and ParallelEmbedding.
  (
    re.compile(
      r'(llma\.)?(layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])|output)\.(weight|bias)'
    ),
    0,
  ),
  (
    re.compile(r'(llma\.)?(layers\.\d+\.(attention\.wo|feed_forward\.w2)|tok_embeddings)\.weight'),
    1,
  ),
]
_PIECE = (
  1 << 18
)  # Elements worked on at a time, so that sums and comparisons take no memory to speak of.


def parallel_dim(key: str) -> int | None:
  """The dimension that ranks share for this key, with or without the `llma.` prefix; None: every rank has all of it."""
  return next((dim for pattern, dim in _SPLIT if pattern.fullmatch(key)), None)


def find(folder) -> dict[str, list[pathlib.Path]]:
  """The shard sets of a folder by kind ('official', 'meta', 'diff'), each complete and in rank order; kinds may be absent.

  Raises:
    SphinxError: no such folder, a shard is missing (named), or two sets of one kind lie together. Meta's names do not
      say how many there are: if the last is missing, `merge` notices.
  """
  if not pathlib.Path(folder).is_dir():
    raise errors.make(
      str(folder), 'no such folder', 'a folder of checkpoint files', 'check the path'
    )
  found = {}
  for kind, pattern in _KINDS.items():
    matches = {
      path: match
      for path in sorted(pathlib.Path(folder).iterdir())
      if (match := pattern.fullmatch(path.name))
    }
    if matches:
      found[kind] = _complete(folder, matches)
  return found


def fold(folder) -> dict[str, list[dict[str, Tensor]]]:
  """`find`, and every file opened: the shards of each kind, ready for `merge`."""
  return {kind: [open_pth(path) for path in paths] for kind, paths in find(folder).items()}


def merge(shards: list[dict[str, Tensor]], report: Callable[[str], None]) -> dict[str, Tensor]:
  """Whole tensors of the shards of all ranks, in rank order; keys as they are, order of rank 0.

  Reading a tensor reads each rank's part once and holds the whole and one part (replicas: two copies, compared).

  Args:
    shards: one opened file a rank.
    report: takes a line for every replicated tensor whose copies turn out to differ when it is read; rank 0's is used.

  Raises:
    SphinxError: keys, dtypes or shapes that do not fit together.
  """
  if len(shards) == 1:
    return dict(shards[0])
  _check_alike(shards)
  _check_width(shards)
  return {key: _whole(key, [shard[key] for shard in shards], report) for key in shards[0]}


def split(
  tensors: Mapping[str, Tensor], count: int, kv_heads: int | None = None
) -> list[dict[str, Tensor]]:
  """The shards of `count` ranks: the inverse of `merge`. Reading one rank's part reads the whole tensor.

  Args:
    tensors: whole tensors.
    count: number of ranks.
    kv_heads: of the model, if known; heads are never cut, and no shape tells how many there are.

  Raises:
    SphinxError: `count` does not divide a dimension it has to, or the heads.
  """
  if kv_heads is not None and kv_heads % count:
    raise errors.make(
      'shards',
      f'{kv_heads} key-value heads for {count} shards',
      'a number of shards that divides them',
      'choose fewer shards',
    )
  if bad := [
    f'{key} {list(tensor.shape)} in dimension {dim}'
    for key, tensor in tensors.items()
    if (dim := parallel_dim(key)) is not None
    and (len(tensor.shape) <= dim or tensor.shape[dim] % count)
  ]:
    raise errors.make(
      'shards',
      f'{len(bad)} tensors that do not divide by {count}: {files.first_names(bad)}',
      'a number of shards that divides them all',
      'choose another number of shards',
    )
  return [
    {key: _part(key, tensor, rank, count) for key, tensor in tensors.items()}
    for rank in range(count)
  ]


def add_diff(base: Mapping[str, Tensor], diff: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Base plus deltas (both merged): summed in float32, kept in the base's dtype; keys of only one are taken as they are.

  A base of Meta's gets the `llma.` prefix if the deltas have it, as in the official loader.

  Raises:
    SphinxError: shapes that differ.
  """
  if any(key.startswith(PREFIX) for key in diff) and not any(
    key.startswith(PREFIX) for key in base
  ):
    base = {PREFIX + key: tensor for key, tensor in base.items()}
  if bad := [
    f'{key} {list(base[key].shape)} + {list(diff[key].shape)}'
    for key in base
    if key in diff and base[key].shape != diff[key].shape
  ]:
    raise errors.make(
      'shards',
      f'deltas of other shapes than their base: {files.first_names(bad)}',
      'equal shapes',
      'give the base that the deltas were made for',
    )
  return {**base, **diff, **{key: _sum(base[key], diff[key]) for key in base if key in diff}}


def _complete(folder, matches: dict[pathlib.Path, re.Match]) -> list[pathlib.Path]:
  """The files in rank order, none missing."""
  counts = sorted({int(match[2]) for match in matches.values() if match.re.groups > 1})
  if len(counts) > 1:
    raise errors.make(
      str(folder),
      f'shards of sets of {" and of ".join(map(str, counts))}',
      'one set',
      'move the other set to a folder of its own',
    )
  by_rank = {int(match[1]): path for path, match in matches.items()}
  count = counts[0] if counts else max(by_rank) + 1
  if missing := sorted(set(range(count)) - set(by_rank)):
    path, match = next(iter(matches.items()))
    names = [
      path.name[: match.start(1)] + f'{rank:02d}' + path.name[match.end(1) :] for rank in missing
    ]
    raise errors.make(
      str(folder),
      f'{len(by_rank)} shards of {count}; missing: {files.first_names(names)}',
      'all of them',
      'download the missing files',
    )
  if len(by_rank) != len(matches) or len(by_rank) != count:
    raise errors.make(
      str(folder),
      f'{len(matches)} files for {count} shards: {files.first_names([p.name for p in matches])}',
      'one file a shard',
      'move what does not belong to the set',
    )
  return [by_rank[rank] for rank in range(count)]


def _check_alike(shards: list[dict[str, Tensor]]) -> None:
  """All ranks hold the same keys with the same shapes and dtypes."""
  bad = []
  for rank, shard in enumerate(shards[1:], 1):
    bad += [
      f'{key} is missing in shard {rank if key in shards[0] else 0}'
      for key in sorted(shards[0].keys() ^ shard.keys())
    ]
    bad += [
      f'{key} {_kind(shards[0][key])} in shard 0, {_kind(shard[key])} in shard {rank}'
      for key in shards[0]
      if key in shard and _kind(shards[0][key]) != _kind(shard[key])
    ]
  bad += [
    f'{key} {_kind(tensor)} has no dimension {dim}'
    for key, tensor in shards[0].items()
    if (dim := parallel_dim(key)) is not None and len(tensor.shape) <= dim
  ]
  if bad:
    raise errors.make(
      'shards',
      f'{len(bad)} differences: {files.first_names(bad)}',
      'the same keys, dtypes and shapes in every shard',
      'give the shards of one checkpoint',
    )


def _check_width(shards: list[dict[str, Tensor]]) -> None:
  """The ranks' columns of the embedding make up the model's width: else a rank is missing, or the vocabulary is split."""
  for prefix in ('', PREFIX):
    embedding, norm = (
      shards[0].get(prefix + 'tok_embeddings.weight'),
      shards[0].get(prefix + 'norm.weight'),
    )
    if embedding and norm and embedding.shape[1] * len(shards) != norm.shape[0]:
      raise errors.make(
        'shards',
        f'{len(shards)} shards with {embedding.shape[1]} columns of tok_embeddings each',
        f'{norm.shape[0]} columns together',
        'give all shards (LLaMA-3 splits its vocabulary instead: not read)',
      )


def _whole(key: str, parts: list[Tensor], report: Callable[[str], None]) -> Tensor:
  dim, first = parallel_dim(key), parts[0]
  if dim is None:
    return Tensor(first.shape, first.dtype, lambda: _replica(key, parts, report))
  size = first.shape[dim]
  shape = first.shape[:dim] + (size * len(parts),) + first.shape[dim + 1 :]

  def read() -> np.ndarray:
    array = np.empty(shape, first.dtype)
    for rank, part in enumerate(parts):
      array[(slice(None),) * dim + (slice(rank * size, (rank + 1) * size),)] = part.read()
    return array

  return Tensor(shape, first.dtype, read)


def _replica(key: str, parts: list[Tensor], report: Callable[[str], None]) -> np.ndarray:
  """Rank 0's copy, compared bit by bit with the others."""
  first = parts[0].read()
  for rank, part in enumerate(parts[1:], 1):
    difference = _difference(first, part.read())
    if difference is not None:
      report(
        f'{key}: the copies in shards 0 and {rank} differ by up to {difference:.3g}; shard 0 is used'
      )
  return first


def _difference(a: np.ndarray, b: np.ndarray) -> float | None:
  """The largest absolute difference, or None where all bits are equal."""
  a, b, largest = a.reshape(-1), b.reshape(-1), None
  for start in range(0, a.size, _PIECE):
    x, y = a[start : start + _PIECE], b[start : start + _PIECE]
    if not np.array_equal(x.view(np.uint8), y.view(np.uint8)):
      wide = np.promote_types(a.dtype, np.float32)
      largest = max(largest or 0.0, float(np.max(np.abs(x.astype(wide) - y.astype(wide)))))
  return largest


def _part(key: str, tensor: Tensor, rank: int, count: int) -> Tensor:
  dim = parallel_dim(key)
  if dim is None:
    return tensor
  size = tensor.shape[dim] // count
  where = (slice(None),) * dim + (slice(rank * size, (rank + 1) * size),)
  shape = tensor.shape[:dim] + (size,) + tensor.shape[dim + 1 :]
  return Tensor(shape, tensor.dtype, lambda: tensor.read()[where].copy())


def _sum(base: Tensor, diff: Tensor) -> Tensor:
  def read() -> np.ndarray:
    array, delta = base.read(), diff.read().reshape(-1)
    flat, wide = array.reshape(-1), np.promote_types(base.dtype, np.float32)
    for start in range(0, flat.size, _PIECE):
      piece = slice(start, start + _PIECE)
      flat[piece] = (flat[piece].astype(wide) + delta[piece].astype(wide)).astype(base.dtype)
    return array

  return Tensor(base.shape, base.dtype, read)


def _kind(tensor: Tensor) -> str:
  return f'{tensor.dtype}{list(tensor.shape)}'
