"""The mix of scales: one image becomes a global view and n x n sub-images of a larger canvas.

Resampling is separable, so a resize is two products with small constant matrices: a matmul on the
device, for any size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors

# Index int[n_out] and weight float32[n_out] of one of the samples that make an output.
Tap = tuple[np.ndarray, np.ndarray]

SHOWN = ('both', 'global', 'sub')  # What the views of an image show.

# The coefficient "A" of the bicubic kernel (docs/official_sphinx.md, "Interpolation").
_CUBIC = np.float32(-0.75)


def resize_matrix(
  n_in: int, n_out: int, scale: float | None = None, method: str = 'bicubic'
) -> np.ndarray:
  """Returns the matrix that resamples one axis, float32[n_out, n_in].

  Corners are not aligned, there is no antialiasing, and indices are clamped at the border.

  Args:
    n_in: samples of the input.
    n_out: samples of the output.
    scale: output samples per input sample, if not n_out / n_in (the position grid of DINOv2 has
      16.1 / 37).
    method: 'bicubic' or 'nearest' (index floor(i * n_in / n_out)).

  Raises:
    SphinxError: the method is unknown.
  """
  rows = np.arange(n_out)
  matrix = np.zeros((n_out, n_in), np.float32)
  if method == 'nearest':
    index = (rows * _step(n_in, n_out, scale)).astype(np.int64)
    matrix[rows, np.minimum(index, n_in - 1)] = 1.0
  elif method == 'bicubic':
    for index, weight in _taps(n_in, n_out, scale):
      np.add.at(matrix, (rows, index), weight)
  else:
    raise errors.unknown('resize method', method, ('bicubic', 'nearest'))
  return matrix


def _step(n_in: int, n_out: int, scale: float | None) -> np.float32:
  """Returns the number of input samples per output sample."""
  return np.float32(n_in / n_out if scale is None else 1.0 / scale)


def _taps(n_in: int, n_out: int, scale: float | None = None) -> list[Tap]:
  """Returns the four bicubic taps of every output sample, bit-equal to torch's."""
  step = _step(n_in, n_out, scale)
  source = _multiply_add(step, np.arange(n_out) + np.float32(0.5), np.float32(-0.5))
  first = np.floor(source)
  rest = source - first
  weights = (_far(rest + 1), _near(rest), _near(1 - rest), _far((1 - rest) + 1))
  index = first.astype(np.int64)
  return [
    (np.clip(index + offset, 0, n_in - 1), weight) for offset, weight in zip((-1, 0, 1, 2), weights)
  ]


def _near(x: np.ndarray) -> np.ndarray:
  """The bicubic kernel for distances below 1."""
  return _multiply_add(_CUBIC + 2, x, -(_CUBIC + 3)) * x * x + 1


def _far(x: np.ndarray) -> np.ndarray:
  """The bicubic kernel for distances between 1 and 2."""
  return _multiply_add(_multiply_add(_CUBIC, x, -5 * _CUBIC), x, 8 * _CUBIC) * x - 4 * _CUBIC


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.float32) -> np.ndarray:
  """Returns a * b + c in float32, rounded once, as torch's compiled code computes it.

  float64 holds the product exactly.
  """
  return (np.float64(a) * b + c).astype(np.float32)


def resize(
  images: jax.Array,
  size: int,
  scale: float | None = None,
  method: str = 'bicubic',
  half_round: bool = False,
) -> jax.Array:
  """Resizes square images.

  Args:
    images: float32[B,Y,X,C] with Y = X.
    size: pixels per side of the result.
    scale: see `resize_matrix`.
    method: see `resize_matrix`.
    half_round: round input, weights and result to float16, and sum in float32. The result is
      bit-equal to the half-precision interpolation of the official code on a CPU. It rounds even if
      the size does not change.

  Returns:
    float32[B,size,size,C].
  """
  if half_round:
    images = _round_to_half(images)
  if images.shape[1] != size or scale is not None:
    if half_round and method == 'bicubic':
      taps = _taps(images.shape[1], size, scale)
      columns = _weighted_sum(images, 2, taps)  # Columns before rows.
      images = _weighted_sum(columns, 1, taps)
    else:
      matrix = resize_matrix(images.shape[1], size, scale, method)
      # Full float32 products: by default a TPU would round the pixels to bfloat16.
      images = jnp.einsum('jx,byxc->byjc', matrix, images, precision=jax.lax.Precision.HIGHEST)
      images = jnp.einsum('iy,byjc->bijc', matrix, images, precision=jax.lax.Precision.HIGHEST)
  return _round_to_half(images) if half_round else images


def _round_to_half(images: jax.Array) -> jax.Array:
  """Rounds to the nearest float16 and returns float32."""
  # A cast there and back may be removed by XLA. reduce_precision flushes subnormal numbers, which
  # are multiples of 2^-24.
  normal = jax.lax.reduce_precision(images, exponent_bits=5, mantissa_bits=10)
  subnormal = jnp.round(images * 2.0**24) * 2.0**-24
  return jnp.where(jnp.abs(images) < 2.0**-14, subnormal, normal)


def _weighted_sum(images: jax.Array, axis: int, taps: list[Tap]) -> jax.Array:
  """Sums four taps along an axis, in the order and with the rounding of torch.

  torch computes fma(tap, weight, sum) with weights rounded to float16. XLA may or may not fuse a
  product with a sum, so no product here may need rounding: a pixel is split in two parts of 12
  bits, whose products with the 11 bits of a weight are exact.
  """

  def products(tap: Tap) -> tuple[jax.Array, jax.Array]:
    index, weight = tap
    pixels = jnp.take(images, index, axis=axis)
    half_weight = weight.astype(np.float16).astype(np.float32)
    half_weight = np.expand_dims(half_weight, tuple(range(1, images.ndim - axis)))
    high = jax.lax.reduce_precision(pixels, exponent_bits=8, mantissa_bits=11)
    return high * half_weight, (pixels - high) * half_weight

  # The compiler of the official code's kernel starts with the second product.
  high, low = products(taps[1])
  total = high + low
  for tap in (taps[0], taps[2], taps[3]):
    high, low = products(tap)
    rough = high + total
    part = rough - high
    # What rounding `rough` lost, exactly (Knuth's two-sum).
    lost = (high - (rough - part)) + (total - part)
    total = rough + (lost + low)
  return total


def views(
  images: jax.Array, grid: int, view: int, half_round: bool = False, shown: str = 'both'
) -> jax.Array:
  """Returns the global view and the sub-images of each image.

  An image that already has the required size is used as it is, without rounding
  (docs/official_sphinx.md, "Views").

  Args:
    images: float32[B,Y,X,C] with Y = X.
    grid: sub-images per side; 1: only the global view.
    view: pixels per side of a view. The sub-images are cut from the image at grid * view pixels.
    half_round: see `resize`.
    shown: 'both'; 'global': the global view in place of every sub-image; 'sub': the mean color in
      place of the global view. The number of views is the same, so that studies compare scales at
      equal positions.

  Returns:
    float32[B,V,view,view,C]: the global view, then the grid x grid sub-images row by row.
  """

  def resized(size: int) -> jax.Array:
    return images if images.shape[1] == size else resize(images, size, half_round=half_round)

  global_view = resized(view)[:, None]
  if grid == 1:
    return global_view
  if shown == 'global':
    return jnp.repeat(global_view, 1 + grid**2, axis=1)
  if shown == 'sub':
    global_view = jnp.zeros_like(global_view)
  batch, channels = images.shape[0], images.shape[-1]
  cells = resized(grid * view).reshape(batch, grid, view, grid, view, channels).swapaxes(2, 3)
  sub_images = cells.reshape(batch, grid * grid, view, view, channels)
  return jnp.concatenate([global_view, sub_images], axis=1)
