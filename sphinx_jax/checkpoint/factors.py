"""What an adapter adds to a stored parameter, in numpy: to the whole of it or to a part."""

from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.checkpoint import stream


class Factors(NamedTuple):
  """The adapter of a matrix, or those of a stack of them: scale * a @ b.

  Attributes:
    a: [...,in,r], with the layers, and experts, of a stack in front.
    b: [...,r,*features].
    scale: [...].
    magnitude: float32[...,*features], the lengths that the columns of the sum get (DoRA, arXiv
      2402.09353); NaN where the sum keeps its own. None: it keeps all.
  """

  a: np.ndarray
  b: np.ndarray
  scale: np.ndarray
  magnitude: np.ndarray | None = None

  @property
  def is_stacked(self) -> bool:
    """Whether there is one for each layer of a stack."""
    return self.scale.ndim > 0

  def delta(self, index: stream.Index) -> np.ndarray:
    """The part of scale * a @ b at an index into the matrix or stack, float32."""
    if self.is_stacked:
      layer, *rest = index or (slice(None),)
      if isinstance(layer, slice):
        layers = range(len(self.scale))[layer]
        return np.stack([self.of_layer(i).delta(tuple(rest)) for i in layers])
      return self.of_layer(layer).delta(tuple(rest))
    rows, *features = index or (slice(None),)
    return self.scale * np.tensordot(self.a[rows], self.b[(slice(None), *features)], 1)

  def of_layer(self, layer: int) -> 'Factors':
    """The adapter of one layer of a stack."""
    return Factors(*(None if leaf is None else leaf[layer] for leaf in self))


class MergedArray(stream.Array):
  """A matrix [in,*features], or a stack of them, with an adapter added, in a dtype."""

  def __init__(self, matrix: Any, factors: Factors, dtype: Any) -> None:
    super().__init__(matrix.shape, dtype, self._read, matrix.layers)
    self._matrix, self._factors = matrix, factors
    self._gain: np.ndarray | None = None

  @property
  def chunk(self) -> tuple[int, ...]:
    """Shape of a stored chunk of the matrix."""
    return self._matrix.chunk

  def start_read(self, index: stream.Index) -> '_PendingMerge':
    """Starts reading a part of the matrix."""
    return _PendingMerge(self._matrix.start_read(index), self, index)

  def _read(self, index: stream.Index) -> np.ndarray:
    return self.merge(self._matrix.read(index), index)

  def merge(self, part: np.ndarray, index: stream.Index) -> np.ndarray:
    """The part of the merged matrix at an index, of that part of the matrix."""
    total = part.astype(np.float32) + self._factors.delta(index)
    if self._factors.magnitude is not None:
      total *= self._gains()[_of_columns(index, self._factors.scale.ndim)]
    return total.astype(self.dtype)

  def _gains(self) -> np.ndarray:
    """The factors [...,*features] of DoRA, for which the whole matrix is read once."""
    if self._gain is None:
      lengths = [
        np.linalg.norm(self._matrix.read(i).astype(np.float32) + self._factors.delta(i), axis=0)
        for i in np.ndindex(self._factors.scale.shape)
      ]
      magnitude = self._factors.magnitude
      gain = magnitude / np.reshape(lengths, magnitude.shape)
      self._gain = np.where(np.isnan(magnitude), np.float32(1), gain)
    return self._gain


class _PendingMerge(NamedTuple):
  """A part of a matrix that is being read, and the array that merges it."""

  part: Any
  array: MergedArray
  index: stream.Index

  def result(self) -> np.ndarray:
    """Waits for the part and returns it merged."""
    return self.array.merge(self.part.result(), self.index)


def _of_columns(index: stream.Index, stack: int) -> stream.Index:
  """The index into numbers [...,*features] that are multiplied with a part [...,in,*features]."""
  full = (*index, *[slice(None)] * (stack + 1 - len(index)))
  rows = [] if isinstance(full[stack], int) else [None]
  return (*full[:stack], *rows, *full[stack + 1 :])
