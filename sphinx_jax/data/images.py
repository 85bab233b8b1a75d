"""Image bytes -> the padded uint8 square that every encoder takes.

Source: docs/official_sphinx.md, "Preprocessing".
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample

# CLIP's mean color. It becomes about zero after normalization.
BACKGROUND = (122, 116, 104)
_MAX_EDGE = 1 << 14  # Pixels. The time of the resize grows with the square of the longer edge.


def size(data: bytes) -> tuple[int, int]:
  """Returns (width, height) in pixels from the header of an encoded image.

  Raises:
    BadExample: as `decode`.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      return image.size
  except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
    raise BadExample('unreadable image', f'{len(data)} bytes that are no image') from error


def decode(data: bytes) -> np.ndarray:
  """Decodes an image file (PNG, JPEG, ...) to uint8[Y,X,3] RGB, like Pillow's `convert('RGB')`.

  The official code uses the same conversion. Gray becomes three equal channels, CMYK and palettes
  become RGB, and transparent pixels show their hidden color. EXIF orientation is ignored, because
  boxes refer to the stored pixels. One case differs from Pillow: 16-bit gray keeps its high bytes,
  as 16-bit color does. Pillow would clip it to white.

  Raises:
    BadExample: ('unreadable image') the data is not an image, is truncated, or is too large (more
      than 179 million pixels, or an edge of more than 16384 pixels).
  """
  return np.asarray(_open(data))


def square(data: bytes, size: int, mirrored: bool = False) -> np.ndarray:
  """Decodes an image file straight to its padded square, without intermediate arrays.

  Args:
    data: encoded file.
    size: edge of the square in pixels.
    mirrored: flip the image left to right before padding.

  Returns:
    uint8[size,size,3], equal to `padded_resize(decode(data), size)`.

  Raises:
    BadExample: as `decode`.
  """
  image = _open(data)
  if mirrored:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(_padded_resize(image, size))


def padded_resize(image: np.ndarray, size: int) -> np.ndarray:
  """Pads an image to a square and resizes it, bit-equal to the official transform.

  Args:
    image: uint8[Y,X,3].
    size: edge of the result in pixels.

  Returns:
    uint8[size,size,3].

  Raises:
    SphinxError: another kind of array. An image of floats in [0, 1] would come out black.
  """
  is_array = isinstance(image, np.ndarray)
  if not is_array or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
    got = f'{image.dtype}{list(image.shape)}' if is_array else repr(type(image).__name__)
    raise errors.make(
      'image',
      got,
      'a uint8 array [rows, columns, 3]',
      "convert it, for example with np.asarray(image.convert('RGB'))",
    )
  return np.asarray(_padded_resize(Image.fromarray(image), size))


def _padded_resize(image: Image.Image, size: int) -> Image.Image:
  """Centers an RGB image in a square of its longer edge, then resizes it (antialiased bicubic).

  The left or top margin is half the difference of the edges, rounded down.
  """
  width, height = image.size
  side = max(width, height)
  canvas = (side, side)
  if width > height:
    # Pillow resizes rows first, then columns, and rows of padding do not change. Resizing the rows
    # before padding gives the same pixels in as little as half the time.
    image = image.resize((size, height), Image.Resampling.BICUBIC)
    canvas = (size, side)
  if width != height:
    padded = Image.new('RGB', canvas, BACKGROUND)
    padded.paste(image, ((side - width) // 2, (side - height) // 2))
    image = padded
  return image.resize((size, size), Image.Resampling.BICUBIC)


def _open(data: bytes) -> Image.Image:
  """Decodes an image file to a loaded RGB image; see `decode`."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      if max(image.size) > _MAX_EDGE:
        width, height = image.size
        raise ValueError(f'{width} x {height} pixels, the longest edge allowed is {_MAX_EDGE}')
      if image.mode.startswith('I;16'):
        high_bytes = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(high_bytes).convert('RGB')
      if image.mode == 'RGB':
        image.load()
        return image  # `convert` would copy it.
      return image.convert('RGB')
  except UnidentifiedImageError as error:
    raise BadExample('unreadable image', f'{len(data)} bytes that are no image') from error
  except (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
  ) as error:
    raise BadExample('unreadable image', f'image of {len(data)} bytes: {error}') from error
