"""Tensor-parallel shards of torch checkpoints: find, merge, split, and add deltas to a base.

The splits are those of fairscale's ColumnParallelLinear, RowParallelLinear and ParallelEmbedding
(docs/official_sphinx.md, "Shards").
"""

import functools
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from sphinx_jax.checkpoint.foreign import files
from sphinx_jax.checkpoint.foreign.pth import open_pth
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

# File names of a set of shards by kind. Groups: the rank, and the number of shards if it is named.
_KINDS = {
  'official': re.compile(r'consolidated\.(\d+)-of-(\d+)\.model\.pth'),
  'meta': re.compile(r'consolidated\.(\d+)\.pth'),
  'diff': re.compile(r'.*?(\d+)-of-(\d+)\.model-diff\.pth'),
}
PREFIX = 'llma.'  # Of names in the official code; Meta's own files lack it.
# (names, split dimension). All other tensors are replicated.
_SPLIT = (
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
)
# Elements per step of sums and comparisons, so that they take little memory.
_PIECE = 1 << 18


def parallel_dim(key: str) -> int | None:
  """Returns the dimension along which ranks split a tensor, or None if it is replicated.

  Args:
    key: name of the tensor, with or without the prefix `llma.`.
  """
  return next((dim for pattern, dim in _SPLIT if pattern.fullmatch(key)), None)


def find_sets(folder: files.Path) -> dict[str, list[pathlib.Path]]:
  """Finds the sets of shards in a folder.

  Returns:
    Kind ('official', 'meta', 'diff') -> the files in rank order. Absent kinds are left out.

  Raises:
    SphinxError: there is no such folder, a shard is missing (it is named), or there are two sets of
      one kind. Meta's names do not have the number of shards: `merge` notices if the last one is
      missing.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise errors.make(
      str(folder), 'no such folder', 'a folder of checkpoint files', 'check the path'
    )
  paths = sorted(folder.iterdir())
  sets = {}
  for kind, pattern in _KINDS.items():
    matches = {path: match for path in paths if (match := pattern.fullmatch(path.name))}
    if matches:
      sets[kind] = _in_rank_order(folder, matches)
  return sets


def open_sets(folder: files.Path) -> dict[str, list[dict[str, Tensor]]]:
  """Opens the files that `find_sets` finds: kind -> one opened file per rank, for `merge`."""
  return {kind: [open_pth(path) for path in paths] for kind, paths in find_sets(folder).items()}


def merge(shards: list[dict[str, Tensor]], report: Callable[[str], None]) -> dict[str, Tensor]:
  """Merges the shards of all ranks into whole tensors; names and order are those of rank 0.

  Reading a tensor reads each rank's part once. It holds the whole tensor and one part in memory; of
  a replicated tensor two copies, which are compared.

  Args:
    shards: one opened file per rank, in rank order.
    report: called with a message for every replicated tensor whose copies differ when it is read.
      The copy of rank 0 is used.

  Raises:
    SphinxError: names, dtypes or shapes of the ranks do not fit together.
  """
  if len(shards) == 1:
    return dict(shards[0])
  _check_same_tensors(shards)
  _check_width(shards)
  return {key: _merge_tensor(key, [shard[key] for shard in shards], report) for key in shards[0]}


def split(
  tensors: Mapping[str, Tensor], count: int, kv_heads: int | None = None
) -> list[dict[str, Tensor]]:
  """Splits whole tensors into the shards of `count` ranks: the inverse of `merge`.

  Reading the part of one rank reads the whole tensor.

  Args:
    tensors: whole tensors.
    count: number of ranks.
    kv_heads: number of key-value heads, if known. Heads are never cut, and no shape determines how
      many there are.

  Raises:
    SphinxError: `count` does not divide the heads or a split dimension.
  """
  if kv_heads is not None and kv_heads % count:
    raise errors.make(
      'shards',
      f'{kv_heads} key-value heads for {count} shards',
      'a number of shards that divides them',
      'choose fewer shards',
    )
  indivisible = [
    f'{key} {list(tensor.shape)} in dimension {dim}'
    for key, tensor in tensors.items()
    if (dim := parallel_dim(key)) is not None
    and (len(tensor.shape) <= dim or tensor.shape[dim] % count)
  ]
  if indivisible:
    raise errors.make(
      'shards',
      f'{len(indivisible)} tensors that do not divide by {count}: {files.first_names(indivisible)}',
      'a number of shards that divides them all',
      'choose another number of shards',
    )
  return [
    {key: _rank_part(key, tensor, rank, count) for key, tensor in tensors.items()}
    for rank in range(count)
  ]


def add_diff(base: Mapping[str, Tensor], diff: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Adds deltas to their base, in float32; the result has the dtypes of the base.

  Tensors that only one of them has are used as they are. Names of a base from Meta get the prefix
  `llma.` if the deltas have it, as in the official loader.

  Args:
    base, diff: merged tensors.

  Raises:
    SphinxError: shapes differ.
  """
  diff_has_prefix = any(key.startswith(PREFIX) for key in diff)
  base_has_prefix = any(key.startswith(PREFIX) for key in base)
  if diff_has_prefix and not base_has_prefix:
    base = {PREFIX + key: tensor for key, tensor in base.items()}
  shared = [key for key in base if key in diff]
  different = [
    f'{key} {list(base[key].shape)} + {list(diff[key].shape)}'
    for key in shared
    if base[key].shape != diff[key].shape
  ]
  if different:
    raise errors.make(
      'shards',
      f'deltas of other shapes than their base: {files.first_names(different)}',
      'equal shapes',
      'give the base that the deltas were made for',
    )
  return {**base, **diff, **{key: _add_tensors(base[key], diff[key]) for key in shared}}


def _in_rank_order(
  folder: pathlib.Path, matches: Mapping[pathlib.Path, re.Match]
) -> list[pathlib.Path]:
  """Returns the files of one kind in rank order.

  Raises:
    SphinxError: a rank is missing, or there are several sets.
  """
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
  missing = sorted(set(range(count)) - set(by_rank))
  if missing:
    path, match = next(iter(matches.items()))
    before, after = path.name[: match.start(1)], path.name[match.end(1) :]
    names = [f'{before}{rank:02d}{after}' for rank in missing]
    raise errors.make(
      str(folder),
      f'{len(by_rank)} shards of {count}; missing: {files.first_names(names)}',
      'all of them',
      'download the missing files',
    )
  if len(by_rank) != len(matches) or len(by_rank) != count:
    names = [path.name for path in matches]
    raise errors.make(
      str(folder),
      f'{len(matches)} files for {count} shards: {files.first_names(names)}',
      'one file per shard',
      'move files that do not belong to the set',
    )
  return [by_rank[rank] for rank in range(count)]


def _check_same_tensors(shards: list[dict[str, Tensor]]) -> None:
  """Checks that all ranks have the same names with the same shapes and dtypes."""
  differences = []
  for rank, shard in enumerate(shards[1:], 1):
    for key in sorted(shards[0].keys() ^ shard.keys()):
      differences.append(f'{key} is missing in shard {rank if key in shards[0] else 0}')
    for key in shards[0]:
      first = _describe(shards[0][key])
      if key in shard and _describe(shard[key]) != first:
        differences.append(f'{key} {first} in shard 0, {_describe(shard[key])} in shard {rank}')
  for key, tensor in shards[0].items():
    dim = parallel_dim(key)
    if dim is not None and len(tensor.shape) <= dim:
      differences.append(f'{key} {_describe(tensor)} has no dimension {dim}')
  if differences:
    raise errors.make(
      'shards',
      f'{len(differences)} differences: {files.first_names(differences)}',
      'the same keys, dtypes and shapes in every shard',
      'give the shards of one checkpoint',
    )


def _check_width(shards: list[dict[str, Tensor]]) -> None:
  """Checks that the embedding columns of all ranks add up to the width of the model.

  If they do not, a rank is missing, or the vocabulary is split instead.
  """
  for prefix in ('', PREFIX):
    embedding = shards[0].get(prefix + 'tok_embeddings.weight')
    norm = shards[0].get(prefix + 'norm.weight')
    if embedding and norm and embedding.shape[1] * len(shards) != norm.shape[0]:
      raise errors.make(
        'shards',
        f'{len(shards)} shards with {embedding.shape[1]} columns of tok_embeddings each',
        f'{norm.shape[0]} columns together',
        'give all shards (LLaMA-3 splits its vocabulary instead, which is not supported)',
      )


def _merge_tensor(key: str, parts: list[Tensor], report: Callable[[str], None]) -> Tensor:
  dim, first = parallel_dim(key), parts[0]
  if dim is None:
    read = functools.partial(_read_replica, key, parts, report)
    return Tensor(first.shape, first.dtype, read)
  shape = (*first.shape[:dim], first.shape[dim] * len(parts), *first.shape[dim + 1 :])

  def read_parts() -> np.ndarray:
    array = np.empty(shape, first.dtype)
    for rank, part in enumerate(parts):
      array[_rank_slice(dim, rank, first.shape[dim])] = part.read()
    return array

  return Tensor(shape, first.dtype, read_parts)


def _rank_slice(dim: int, rank: int, size: int) -> tuple[slice, ...]:
  """Returns the index of a rank's part of `size` along a dimension."""
  return (*(slice(None) for _ in range(dim)), slice(rank * size, (rank + 1) * size))


def _read_replica(key: str, parts: list[Tensor], report: Callable[[str], None]) -> np.ndarray:
  """Reads rank 0's copy and compares it bit by bit with the other copies."""
  first = parts[0].read()
  for rank, part in enumerate(parts[1:], 1):
    difference = _largest_difference(first, part.read())
    if difference is not None:
      report(
        f'{key}: the copies in shards 0 and {rank} differ by up to {difference:.3g}; '
        'shard 0 is used'
      )
  return first


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float | None:
  """Returns the largest absolute difference, or None if all bits are equal."""
  a, b = a.reshape(-1), b.reshape(-1)
  wide = np.promote_types(a.dtype, np.float32)
  largest = None
  for start in range(0, a.size, _PIECE):
    x, y = a[start : start + _PIECE], b[start : start + _PIECE]
    if not np.array_equal(x.view(np.uint8), y.view(np.uint8)):
      difference = float(np.max(np.abs(x.astype(wide) - y.astype(wide))))
      largest = max(largest or 0.0, difference)
  return largest


def _rank_part(key: str, tensor: Tensor, rank: int, count: int) -> Tensor:
  dim = parallel_dim(key)
  if dim is None:
    return tensor
  size = tensor.shape[dim] // count
  index = _rank_slice(dim, rank, size)
  shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
  return Tensor(shape, tensor.dtype, lambda: tensor.read()[index].copy())


def _add_tensors(base: Tensor, diff: Tensor) -> Tensor:
  wide = np.promote_types(base.dtype, np.float32)

  def read() -> np.ndarray:
    total = base.read()
    flat, delta = total.reshape(-1), diff.read().reshape(-1)
    for start in range(0, flat.size, _PIECE):
      piece = slice(start, start + _PIECE)
      flat[piece] = (flat[piece].astype(wide) + delta[piece].astype(wide)).astype(base.dtype)
    return total

  return Tensor(base.shape, base.dtype, read)


def _describe(tensor: Tensor) -> str:
  return f'{tensor.dtype}{list(tensor.shape)}'
