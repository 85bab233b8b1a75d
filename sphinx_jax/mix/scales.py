"""The mix of scales: one image becomes a global view and n x n sub-images cut from a larger canvas.

Resampling is separable, so a resize is two products with small constant matrices: a matmul on the device, any size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors

_CUBIC = np.float32(-0.75)  # The "A" of the bicubic kernel (FACTS "Interpolation").


def resize_matrix(
  n_in: int, n_out: int, scale: float | None = None, method: str = 'bicubic'
) -> np.ndarray:
  """The float32[n_out, n_in] matrix that resamples one axis (corners not aligned, no antialiasing, border clamped).

  Args:
    n_in: samples of the input.
    n_out: samples of the output.
    scale: output samples per input sample where it is not n_out / n_in (DINOv2's position grid: 16.1 / 37).
    method: 'bicubic' or 'nearest' (index floor(i * n_in / n_out)).

  Raises:
    SphinxError: for another method.
  """
  rows = np.arange(n_out)
  matrix = np.zeros((n_out, n_in), np.float32)
  if method == 'nearest':
    matrix[rows, np.minimum((rows * _step(n_in, n_out, scale)).astype(np.int64), n_in - 1)] = 1.0
  elif method == 'bicubic':
    for index, weight in _taps(n_in, n_out, scale):
      np.add.at(matrix, (rows, index), weight)
  else:
    raise errors.unknown('resize method', method, ('bicubic', 'nearest'))
  return matrix


def _step(n_in: int, n_out: int, scale: float | None) -> np.float32:
  return np.float32(n_in / n_out if scale is None else 1.0 / scale)


def _taps(n_in: int, n_out: int, scale: float | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
  """Bicubic: index int[n_out] and weight float32[n_out] of the four samples that make an output, bit-equal to torch's."""
  source = _multiply_add(
    _step(n_in, n_out, scale), np.arange(n_out) + np.float32(0.5), np.float32(-0.5)
  )
  first = np.floor(source)
  rest = source - first
  weights = (_far(rest + 1), _near(rest), _near(1 - rest), _far((1 - rest) + 1))
  index = first.astype(np.int64)
  return [
    (np.clip(index + offset, 0, n_in - 1), weight) for offset, weight in zip((-1, 0, 1, 2), weights)
  ]


def _near(x: np.ndarray) -> np.ndarray:
  return _multiply_add(_CUBIC + 2, x, -(_CUBIC + 3)) * x * x + 1


def _far(x: np.ndarray) -> np.ndarray:
  return _multiply_add(_multiply_add(_CUBIC, x, -5 * _CUBIC), x, 8 * _CUBIC) * x - 4 * _CUBIC


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.float32) -> np.ndarray:
  """a * b + c of float32 rounded once, as torch's compiled code has it: float64 holds what comes before exactly."""
  return (np.float64(a) * b + c).astype(np.float32)


def resize(
  images: jax.Array,
  size: int,
  scale: float | None = None,
  method: str = 'bicubic',
  half_round: bool = False,
) -> jax.Array:
  """Resizes square float32[B,Y,X,C] to float32[B,size,size,C].

  Args:
    images: the square pictures, Y = X.
    size: pixels of an edge of the result.
    scale: see `resize_matrix`.
    method: see `resize_matrix`.
    half_round: round input, weights and result to float16 and sum in float32: bit-equal to what the official code's
      half-precision interpolation gives on a CPU. Rounds also where the size does not change.
  """
  if half_round:
    images = _rounded(images)
  if images.shape[1] != size or scale is not None:
    if half_round and method == 'bicubic':
      taps = _taps(images.shape[1], size, scale)
      images = _weighted(_weighted(images, 2, taps), 1, taps)  # Columns are mixed before rows.
    else:
      matrix = resize_matrix(images.shape[1], size, scale, method)
      # Full float32 products: a TPU would otherwise cut pixels to bfloat16.
      images = jnp.einsum('jx,byxc->byjc', matrix, images, precision=jax.lax.Precision.HIGHEST)
      images = jnp.einsum('iy,byjc->bijc', matrix, images, precision=jax.lax.Precision.HIGHEST)
  return _rounded(images) if half_round else images


def _rounded(images: jax.Array) -> jax.Array:
  # To the nearest float16, as float32. Not a cast there and back, which XLA may drop; reduce_precision flushes
  # subnormal numbers, which lie at multiples of 2^-24.
  normal = jax.lax.reduce_precision(images, exponent_bits=5, mantissa_bits=10)
  return jnp.where(jnp.abs(images) < 2.0**-14, jnp.round(images * 2.0**24) * 2.0**-24, normal)


def _weighted(images: jax.Array, axis: int, taps: list[tuple[np.ndarray, np.ndarray]]) -> jax.Array:
  """Sums four taps along an axis in torch's order, fma(tap, weight, sum), with weights rounded to float16.

  Whether XLA fuses a product with a sum is its own choice, so no product here may need rounding: a pixel is split in
  two parts of 12 bits, whose products with the 11 bits of a weight are exact.
  """

  def products(tap):
    index, weight = tap
    pixels = jnp.take(images, index, axis=axis)
    weight = np.expand_dims(
      weight.astype(np.float16).astype(np.float32), tuple(range(1, images.ndim - axis))
    )
    high = jax.lax.reduce_precision(pixels, exponent_bits=8, mantissa_bits=11)
    return high * weight, (pixels - high) * weight

  high, low = products(
    taps[1]
  )  # The compiler of the official code's kernel starts with the second product.
  total = high + low
  for tap in (taps[0], taps[2], taps[3]):
    high, low = products(tap)
    rough = high + total
    part = rough - high
    lost = (high - (rough - part)) + (
      total - part
    )  # What rounding `rough` lost, exactly (Knuth's two-sum).
    total = rough + (lost + low)
  return total


def views(images: jax.Array, grid: int, view: int, half_round: bool = False) -> jax.Array:
  """float32[B,Y,X,C] -> float32[B,V,view,view,C]: the global view, then grid x grid crops row by row if grid > 1.

  The crops are cut from the image at grid * view pixels. An image that already has the size asked for is taken as it
  is, without rounding (FACTS "Views").
  """

  def at(size):
    return images if images.shape[1] == size else resize(images, size, half_round=half_round)

  whole = at(view)[:, None]
  if grid == 1:
    return whole
  batch, channels = images.shape[0], images.shape[-1]
  crops = at(grid * view).reshape(batch, grid, view, grid, view, channels).swapaxes(2, 3)
  return jnp.concatenate([whole, crops.reshape(batch, grid * grid, view, view, channels)], axis=1)
