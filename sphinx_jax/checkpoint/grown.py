"""Tables of more tokens than a checkpoint has, as arrays that are put together while they are read.

Rows of padding, which no token has, are left out: the new tokens follow the old ones.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.checkpoint import stream
from sphinx_jax.models import adapters
from sphinx_jax.models.vocabulary import TABLES

Arrays = Mapping[str, stream.Array]


def begin(arrays: Arrays, vocab: int, count: int, separate: bool) -> dict[str, stream.Array]:
  """The arrays of a run that adds tokens; the rows of these are the mean of the old ones.

  Args:
    arrays: path -> array of the checkpoint that it begins with.
    vocab: number of tokens of the run.
    count: number of them that are new.
    separate: whether the new rows are leaves of their own (models/vocabulary.py).
  """
  grown = dict(arrays)
  for path, (leaf, axis, _) in TABLES.items():
    old = _first(arrays[path].read(()), vocab - count, axis)
    mean = old.mean(axis, dtype=np.float32, keepdims=True).astype(old.dtype)
    new = np.repeat(mean, count, axis)
    if separate:
      grown[leaf] = stream.HeldArray(new)
      new = _first(new, 0, axis)
    grown[path] = Joined(arrays[path], vocab - count, new, axis)
  return grown


def _first(array: np.ndarray, count: int, axis: int) -> np.ndarray:
  return array[(*[slice(None)] * axis, slice(count))]


def join(
  base: Arrays, adapter: Arrays, vocab: int
) -> tuple[dict[str, stream.Array], dict[str, stream.Array]]:
  """Puts the rows of new tokens, which an adapter has, behind those of the old ones.

  Args:
    base: path -> array of the weights under the adapter.
    adapter: path -> array of the adapter.
    vocab: number of tokens with the adapter.

  Returns:
    The arrays of the base with tables of all tokens, and the rest of the adapter.
  """
  base, adapter = dict(base), dict(adapter)
  for path, (leaf, axis, _) in TABLES.items():
    if leaf in adapter:
      new = adapter.pop(leaf).read(())
      kept = adapter.pop(path, base[path])  # The old rows may have been trained, too.
      base[path] = Joined(kept, vocab - new.shape[axis], new, axis)
      of_adapter = f'{path.rpartition("/")[0]}/{adapters.B}'
      if of_adapter in adapter:  # The adapter of the LM head has no part in the new tokens.
        old = adapter[of_adapter].read(())
        adapter[of_adapter] = stream.HeldArray(np.pad(old, ((0, 0), (0, new.shape[axis]))))
  return base, adapter


class Joined(stream.Array):
  """The first entries of an array along an axis, then further ones, in the dtype of the array.

  Args:
    array: the array.
    count: number of its entries.
    new: the further entries.
    axis: the axis.
  """

  def __init__(self, array: stream.Array, count: int, new: np.ndarray, axis: int) -> None:
    shape = [*array.shape]
    shape[axis] = count + new.shape[axis]
    super().__init__(tuple(shape), array.dtype, self._read)
    self._array, self._count, self._axis = array, count, axis
    self._new = new.astype(array.dtype)

  @property
  def chunk(self) -> tuple[int, ...]:
    """Shape of a stored chunk of the array."""
    return self._array.chunk

  def start_read(self, index: stream.Index) -> '_Pending':
    """Starts reading a part."""
    # Integers become slices of one entry, so that all parts have all axes.
    given = (*index, *[slice(None)] * (len(self.shape) - len(index)))
    part = [
      slice(*where.indices(size)[:2]) if isinstance(where, slice) else slice(where, where + 1)
      for where, size in zip(given, self.shape)
    ]
    squeeze = tuple(slice(None) if isinstance(where, slice) else 0 for where in given)
    first, last = part[self._axis].start, part[self._axis].stop

    def along(begin: int, end: int) -> stream.Index:
      return (*part[: self._axis], slice(begin, end), *part[self._axis + 1 :])

    pieces = []
    if first < self._count:
      pieces.append(_start(self._array, along(first, min(last, self._count))))
    if last > self._count:
      new = self._new[along(max(first - self._count, 0), last - self._count)]
      pieces.append(lambda: new)
    return _Pending(pieces, self._axis, squeeze)

  def _read(self, index: stream.Index) -> np.ndarray:
    return self.start_read(index).result()


def _start(array: stream.Array, index: stream.Index) -> Callable[[], np.ndarray]:
  """Starts reading a part of an array, if it can be read in parts; returns what waits for it."""
  if hasattr(array, 'start_read'):
    return array.start_read(index).result
  return lambda: array.read(())[index]


class _Pending(NamedTuple):
  """Pieces of a part that are being read."""

  pieces: list[Callable[[], np.ndarray]]
  axis: int
  squeeze: tuple[Any, ...]

  def result(self) -> np.ndarray:
    """Waits for the pieces and returns the part."""
    values = [piece() for piece in self.pieces]
    whole = values[0] if len(values) == 1 else np.concatenate(values, self.axis)
    return whole[self.squeeze]
