"""Mixes checkpoints part by part, by the law of mix/weights.py: parts are read, mixed and written at the same time."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from sphinx_jax.checkpoint import stream
from sphinx_jax.checkpoint.ahead import ahead
from sphinx_jax.core import trees
from sphinx_jax.core.progress import Progress
from sphinx_jax.mix import weights

Tree = Mapping[str, stream.Stored]  # Path -> array.
Numbers = Mapping[str, tuple[Any, ...]]  # Path -> one coefficient per parent.

_READ = 96 << 20  # Bytes of one part of all inputs together.
WRITING = 128 << 20  # Bytes on their way to the disk.
_PACKED = 128 << 20  # A chunk that is larger is taken apart alone.
_THREADS = 4  # Far away places answer late.


@dataclasses.dataclass(frozen=True)
class Leaf:
  """What is written of one array.

  Attributes:
    shape, dtype: of the array.
    part: the shape of the parts it is mixed in.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  part: tuple[int, ...]

  @property
  def chunk(self) -> tuple[int, ...]:
    """Parts are written whole."""
    return self.part


def leaves(inputs: Sequence[Tree], dtype: Any = None) -> dict[str, Leaf]:
  """Path -> what is written of a mix of these inputs, the first of which gives dtypes where `dtype` is None."""
  found = {}
  for path, array in inputs[0].items():
    out = weights.out_dtype(array.dtype, dtype)
    widest = max(out.itemsize, *(other[path].dtype.itemsize for other in inputs))
    limit = min(_READ // len(inputs), 32 << 20)
    small = array.nbytes <= limit  # Its chunks do not matter, and looking at them would open it.
    found[path] = Leaf(
      array.shape, out, stream.grid(array.shape, widest, limit, None if small else array.chunk)
    )
  return found


def angles(parents: Sequence[Tree], numbers: Numbers, made: Mapping[str, Leaf]) -> Numbers:
  """What slerp multiplies every leaf of its two parents with: a first pass over all that is turned."""
  turned = {path: leaf for path, leaf in made.items() if weights.is_turned(numbers[path])}
  sums = {path: np.zeros(3) for path in turned}
  for path, _, values in _read(parents, turned, 'measuring'):
    sums[path] += [float(product) for product in weights.products(*values)]
  return {
    path: weights.turned(numbers[path], *sums[path]) if path in turned else numbers[path]
    for path in made
  }


def stream_mix(
  parents: Sequence[Tree],
  base: Tree | None,
  numbers: Numbers,
  made: Mapping[str, Leaf],
  writer: stream.Writer,
) -> tuple[list[str], str]:
  """Writes a mix.

  Args:
    parents, base: what is read; leaves are alike.
    numbers: of every leaf.
    made: from `leaves`, of all inputs.
    writer: of the item 'params'.

  Returns:
    Content hashes of the inputs (parents, then the base), and of what was written.
  """
  inputs = [*parents] if base is None else [*parents, base]
  hashes, written = [Hash() for _ in inputs], Hash()
  for path, index, values in _read(inputs, made, 'mixing'):
    leaf = made[path]
    for each, value, tree in zip(hashes, values, inputs):
      each.update(path, tree[path], value)
    start = values[len(parents)] if base is not None else None
    mixed = weights.mix_leaf(values[: len(parents)], numbers[path], start, leaf.dtype)
    mixed = np.asarray(mixed).astype(leaf.dtype, copy=False)
    written.update(path, leaf, mixed)
    writer.write('params', path, mixed, index)
  return [each.hexdigest() for each in hashes], written.hexdigest()


def _read(
  inputs: Sequence[Tree], made: Mapping[str, Leaf], what: str
) -> Iterator[tuple[str, stream.Index, list[np.ndarray]]]:
  """(path, index, that part of every input), in order; the next parts are on their way meanwhile."""
  pieces = [
    (path, index, _cost(inputs, path, leaf))
    for path, leaf in made.items()
    for index in stream.parts(leaf.shape, leaf.part)
  ]
  values = ahead(
    [(cost, functools.partial(_part, inputs, path, index)) for path, index, cost in pieces],
    _THREADS,
  )
  with Progress(total=sum(trees.nbytes(tree) for tree in inputs), what=what, unit='B') as bar:
    for path, index, _ in pieces:
      value = next(values)
      size = sum(each.nbytes for each in value)
      yield path, index, value
      bar.update(size)


def _part(inputs: Sequence[Tree], path: str, index: stream.Index) -> list[np.ndarray]:
  if any(_is_packed_large(tree[path]) for tree in inputs):
    return [tree[path].read(index) for tree in inputs]
  return [wait() for wait in [tree[path].start(index) for tree in inputs]]


def _is_packed_large(array: stream.Stored) -> bool:
  return array.nbytes > _PACKED and np.prod(array.chunk) * array.dtype.itemsize > _PACKED


def _cost(inputs: Sequence[Tree], path: str, leaf: Leaf) -> int:
  """Bytes that reading a part of a leaf takes: its own, and of a large chunk the packed and the unpacked ones."""
  own = int(np.prod(leaf.part)) * sum(tree[path].dtype.itemsize for tree in inputs)
  packed = [
    2 * int(np.prod(tree[path].chunk)) * tree[path].dtype.itemsize
    for tree in inputs
    if _is_packed_large(tree[path])
  ]
  return own + max(packed, default=0)


class Hash:
  """The content of a tree of arrays, whatever its chunks: xxh3_64 of one line an array in the order of their paths,
  `path dtype shape xxh3_64`, the last being that of its bytes in row-major order."""

  def __init__(self):
    self._arrays: dict[str, xxhash.xxh3_64] = {}

  def update(self, path: str, array: Any, part: np.ndarray) -> None:
    """Adds the next part of an array, which has shape and dtype."""
    name = f'{path} {array.dtype} {tuple(array.shape)}'
    if name not in self._arrays:
      self._arrays[name] = xxhash.xxh3_64()
    self._arrays[name].update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))

  def hexdigest(self) -> str:
    """16 hexadecimal digits."""
    lines = (f'{name} {self._arrays[name].hexdigest()}' for name in sorted(self._arrays))
    return xxhash.xxh3_64('\n'.join(lines).encode()).hexdigest()


def content_hash(tree: Tree) -> str:
  """The hash of a checkpoint's arrays; it reads them."""
  found = Hash()
  for path, _, (value,) in _read([tree], leaves([tree]), 'hashing'):
    found.update(path, tree[path], value)
  return found.hexdigest()
