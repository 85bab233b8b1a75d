"""The mix of scales: one image becomes a global view and n x n sub-images cut from a larger canvas.

Resampling is separable, so a resize is two products with small constant matrices: a matmul on the device, any size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors

_CUBIC = np.float32(-0.75)  # The "A" of the bicubic kernel (FACTS "Interpolation").


def resize_matrix(n_in: int, n_out: int, scale: float | None = None, method: str = 'bicubic',
                  half_round: bool = False) -> np.ndarray:
  """The float32[n_out, n_in] matrix that resamples one axis (corners not aligned, no antialiasing, border clamped).

  Args:
    n_in: samples of the input.
    n_out: samples of the output.
    scale: output samples per input sample where it is not n_out / n_in (DINOv2's position grid: 16.1 / 37).
    method: 'bicubic' or 'nearest' (index floor(i * n_in / n_out)).
    half_round: round the weights to float16, as the official code's half-precision bicubic does.

  Raises:
    SphinxError: for another method.
  """
  step = np.float32(n_in / n_out if scale is None else 1.0 / scale)
  rows = np.arange(n_out)
  matrix = np.zeros((n_out, n_in), np.float32)
  if method == 'nearest':
    matrix[rows, np.minimum((rows * step).astype(np.int64), n_in - 1)] = 1.0
    return matrix
  if method != 'bicubic':
    raise errors.unknown('resize method', method, ('bicubic', 'nearest'))
  source = step * (rows.astype(np.float32) + np.float32(0.5)) - np.float32(0.5)
  first = np.floor(source)
  rest = source - first
  weights = (_far(1 + rest), _near(rest), _near(1 - rest), _far(2 - rest))
  for offset, weight in zip((-1, 0, 1, 2), weights):
    if half_round:
      weight = weight.astype(np.float16).astype(np.float32)
    np.add.at(matrix, (rows, np.clip(first.astype(np.int64) + offset, 0, n_in - 1)), weight)
  return matrix


def _near(x: np.ndarray) -> np.ndarray:
  return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1


def _far(x: np.ndarray) -> np.ndarray:
  return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC


def resize(images: jax.Array, size: int, scale: float | None = None, method: str = 'bicubic',
           half_round: bool = False) -> jax.Array:
  """Resizes square float32[B,Y,X,C] to float32[B,size,size,C].

  Args:
    images: the square pictures, Y = X.
    size: pixels of an edge of the result.
    scale: see `resize_matrix`.
    method: see `resize_matrix`.
    half_round: round input, weights and result to float16 and compute in float32, as the official code's
      half-precision interpolation does. Rounds also where the size does not change.
  """
  if half_round:
    images = _rounded(images)
  if images.shape[1] != size or scale is not None:
    matrix = resize_matrix(images.shape[1], size, scale, method, half_round)
    # Full float32 products: a TPU would otherwise cut pixels to bfloat16.
    images = jnp.einsum('jx,byxc->byjc', matrix, images, precision=jax.lax.Precision.HIGHEST)
    images = jnp.einsum('iy,byjc->bijc', matrix, images, precision=jax.lax.Precision.HIGHEST)
  return _rounded(images) if half_round else images


def _rounded(images: jax.Array) -> jax.Array:
  # reduce_precision, not a cast there and back: XLA may drop the pair of casts.
  return jax.lax.reduce_precision(images, exponent_bits=5, mantissa_bits=10)


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
