"""Kernels of checkpoints in few bits (models/quantized.py), as wide arrays computed while read."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import stream
from sphinx_jax.models import quantized, stored
from sphinx_jax.models.adapters import KERNEL


def widen(
  arrays: Mapping[str, stream.StoredArray],
  forms: Mapping[str, stored.Matrix],
  dtype: Any = jnp.bfloat16,
) -> dict[str, stream.StoredArray]:
  """The arrays of a checkpoint, with kernels of a dtype in place of quantized ones.

  Args:
    arrays: path -> array, not read yet.
    forms: layers whose kernels are quantized; those that are not in it stay as they are.
    dtype: of the kernels.
  """
  held = {f'{layer}/{name}' for layer, m in forms.items() for name in (m.form, quantized.SCALE)}
  kept = {path: array for path, array in arrays.items() if path not in held}
  return kept | kernels(arrays, forms, dtype)


def kernels(
  arrays: Mapping[str, stream.StoredArray], forms: Mapping[str, stored.Matrix], dtype: Any
) -> dict[str, stream.Array]:
  """The quantized kernels of a checkpoint alone, path -> array; arguments as of `widen`."""
  wide = {}
  for layer, matrix in forms.items():
    codes, scale = (arrays[f'{layer}/{name}'] for name in (matrix.form, quantized.SCALE))
    wide[f'{layer}/{KERNEL}'] = _WideArray(codes, scale, matrix, np.dtype(dtype))
  return wide


class _WideArray(stream.Array):
  """A kernel [in,...], or a stack of them. It takes the indices of `stream.part_indices`."""

  def __init__(
    self,
    codes: stream.StoredArray,
    scale: stream.StoredArray,
    matrix: stored.Matrix,
    dtype: np.dtype,
  ) -> None:
    self._axis = matrix.stack
    self._height = codes.shape[self._axis] // scale.shape[self._axis]  # Of a tile, in bytes.
    self._tile = self._height * (2 if quantized.FORMS[matrix.form].pairs else 1)
    self._codes, self._scale, self._form = codes, scale, matrix.form
    shape = list(codes.shape)
    shape[self._axis] = self._tile * scale.shape[self._axis]
    layers = shape[0] if matrix.stack else 1
    super().__init__(tuple(shape), dtype, self._read, layers)

  @property
  def chunk(self) -> tuple[int, ...]:
    """Shape of the numbers of a stored chunk of codes."""
    chunk = list(self._codes.chunk)
    chunk[self._axis] = chunk[self._axis] * self._tile // self._height
    return tuple(chunk)

  def start_read(self, index: stream.Index) -> '_PendingWide':
    """Starts reading a part: whole tiles of it, as they have one scale."""
    before, after = index[: self._axis], index[self._axis + 1 :]
    before += (slice(None),) * (self._axis - len(before))
    rows = index[self._axis] if len(index) > self._axis else slice(None)
    begin, end, _ = rows.indices(self.shape[self._axis])
    first, last = begin // self._tile, -(-end // self._tile)
    codes = slice(first * self._height, last * self._height)
    leaves = {
      self._form: self._codes.start_read((*before, codes, *after)),
      quantized.SCALE: self._scale.start_read((*before, slice(first, last), *after)),
    }
    stack = sum(isinstance(part, slice) for part in before)
    rows = slice(begin - first * self._tile, end - first * self._tile)
    return _PendingWide(leaves, stack, rows, self.dtype)

  def _read(self, index: stream.Index) -> np.ndarray:
    return self.start_read(index).result()


class _PendingWide(NamedTuple):
  """The arrays of a part that are being read, and which rows of its kernels it is."""

  leaves: dict[str, stream.PendingRead]
  stack: int
  rows: slice
  dtype: np.dtype

  def result(self) -> np.ndarray:
    """Waits for the part and returns it widened."""
    leaves = {name: read.result() for name, read in self.leaves.items()}
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      wide = np.asarray(_widen(leaves, self.stack, self.dtype))
    return wide[(slice(None),) * self.stack + (self.rows,)]


@functools.partial(jax.jit, static_argnames=('stack', 'dtype'))
def _widen(leaves: dict[str, np.ndarray], stack: int, dtype: np.dtype) -> jax.Array:
  return stored.over_stack(functools.partial(quantized.widen, dtype=dtype), stack)(leaves)
