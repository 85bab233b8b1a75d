"""Tensor-parallel shards of torch checkpoints: find, merge, split, and add deltas to a base.

The splits are those of fairscale's ColumnParallelLinear, RowParallelLinear and ParallelEmbedding
(docs/official_sphinx.md, "Shards"). Experts are split in one of two ways: every rank has some rows
of each expert, in tensors of all experts, or whole experts, in tensors of their own.
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
# Tensors [experts * rows, ...] of which a rank has some rows of every expert; the router, which has
# a row for each expert; and the tensors of single experts, each of which one rank has.
_EXPERTS = re.compile(r'(llma\.)?(layers\.\d+\.feed_forward)\.w[123]')
_ROUTER = re.compile(r'(llma\.)?(layers\.\d+\.feed_forward)\.gate\.weight')
_EXPERT = re.compile(r'(llma\.)?layers\.\d+\.feed_forward\.experts\.\d+\.w[123]\.weight')
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
  _check_one_kind(shards)
  own = _single_experts(shards)
  shared = [{key: value for key, value in shard.items() if key not in own} for shard in shards]
  _check_same_tensors(shared)
  _check_width(shared)
  experts = _count_experts(shared[0])
  merged = {
    key: _merge_tensor(key, [shard[key] for shard in shared], experts, report) for key in shared[0]
  }
  return merged | own


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
  experts = _count_experts(tensors)
  indivisible = [
    f'{key} {list(tensor.shape)} in dimension {dim}'
    for key, tensor in tensors.items()
    if (dim := parallel_dim(key)) is not None
    and (len(tensor.shape) <= dim or tensor.shape[dim] % count)
  ] + [
    f'{key} {list(tensor.shape)} of {experts} experts'
    for key, tensor in tensors.items()
    if _EXPERTS.fullmatch(key) and (not experts or tensor.shape[0] % (experts * count))
  ]
  if indivisible:
    raise errors.make(
      'shards',
      f'{len(indivisible)} tensors that do not divide by {count}: {files.first_names(indivisible)}',
      'a number of shards that divides them all',
      'choose another number of shards',
    )
  return [
    {key: _rank_part(key, tensor, rank, count, experts) for key, tensor in tensors.items()}
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


def _check_one_kind(shards: list[dict[str, Tensor]]) -> None:
  """Checks that all ranks have their experts in the same form."""
  kinds = [
    {pattern for pattern in (_EXPERTS, _EXPERT) if any(map(pattern.fullmatch, shard))}
    for shard in shards
  ]
  if len(set().union(*kinds)) > 1:
    lines = [
      f'shard {rank} {"has both" if len(kind) > 1 else _KIND_OF_EXPERTS[next(iter(kind))]}'
      for rank, kind in enumerate(kinds)
      if kind
    ]
    raise errors.make(
      'shards',
      f'experts in two forms: {files.first_names(lines)}',
      'the files of one checkpoint, all sparse or all base',
      'move the files of the other one to a folder of their own',
    )


_KIND_OF_EXPERTS = {_EXPERTS: 'sparse (w1 of all experts)', _EXPERT: 'base (a w1 for each expert)'}


def _single_experts(shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
  """The tensors of single experts, each of which one rank has."""
  own: dict[str, Tensor] = {}
  for rank, shard in enumerate(shards):
    for key in filter(_EXPERT.fullmatch, shard):
      if key in own:
        raise errors.make(
          'shards',
          f'{key} in shard {rank}, too',
          'every expert in one shard',
          'give the shards of one checkpoint',
        )
      own[key] = shard[key]
  return own


def _count_experts(tensors: Mapping[str, Tensor]) -> int:
  """The number of experts of a layer, by the rows of a router; 0: there is no router."""
  return next((value.shape[0] for key, value in tensors.items() if _ROUTER.fullmatch(key)), 0)


def _merge_tensor(
  key: str, parts: list[Tensor], experts: int, report: Callable[[str], None]
) -> Tensor:
  dim, first = parallel_dim(key), parts[0]
  if _EXPERTS.fullmatch(key):
    return _merge_experts(key, parts, experts)
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


def _merge_experts(key: str, parts: list[Tensor], experts: int) -> Tensor:
  """The tensor of all experts [experts * rows, ...], of which every rank has some rows of each."""
  rows, *rest = parts[0].shape
  if not experts or rows % experts:
    raise errors.make(
      'shards',
      f'{key} {_describe(parts[0])} and a router of {experts} experts',
      'as many rows for each expert',
      'give the shards of one checkpoint',
    )
  of_rank = rows // experts

  def read() -> np.ndarray:
    array = np.empty((experts, len(parts), of_rank, *rest), parts[0].dtype)
    for rank, part in enumerate(parts):
      array[:, rank] = part.read().reshape(experts, of_rank, *rest)
    return array.reshape(-1, *rest)

  return Tensor((rows * len(parts), *rest), parts[0].dtype, read)


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


def _rank_part(key: str, tensor: Tensor, rank: int, count: int, experts: int) -> Tensor:
  dim = parallel_dim(key)
  if _EXPERTS.fullmatch(key):
    rest = tensor.shape[1:]

    def read() -> np.ndarray:
      parts = tensor.read().reshape(experts, count, -1, *rest)
      return parts[:, rank].reshape(-1, *rest)

    return Tensor((tensor.shape[0] // count, *rest), tensor.dtype, read)
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
