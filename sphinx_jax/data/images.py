"""Image bytes -> the padded uint8 square that every encoder starts from (FACTS "Preprocessing")."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample

# CLIP's mean colour; it becomes about zero after normalisation.
BACKGROUND = (122, 116, 104)


def size(data: bytes) -> tuple[int, int]:
  """(width, height) in pixels, read from the head of PNG, JPEG, ... bytes. Raises BadExample as `decode` does."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      return image.size
  except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
    raise BadExample('unreadable image', f'{len(data)} bytes that are no image') from error


def decode(data: bytes) -> np.ndarray:
  """PNG, JPEG, ... -> uint8[Y,X,3] RGB.

  Raises:
    BadExample: ('unreadable image') not an image, cut short, or absurdly large.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      return np.asarray(image.convert('RGB'))
  except UnidentifiedImageError as error:
    raise BadExample('unreadable image', f'{len(data)} bytes that are no image') from error
  except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
    raise BadExample('unreadable image', f'image of {len(data)} bytes: {error}') from error


def pad_to_square(image: np.ndarray) -> np.ndarray:
  """uint8[Y,X,3] -> uint8[M,M,3], M the longer edge; the left or top margin is the floor of half the difference."""
  height, width = image.shape[:2]
  side = max(height, width)
  if height == width:
    return image
  square = np.empty((side, side, 3), np.uint8)
  square[:] = BACKGROUND
  top, left = (side - height) // 2, (side - width) // 2
  square[top:top + height, left:left + width] = image
  return square


def padded_resize(image: np.ndarray, size: int) -> np.ndarray:
  """uint8[Y,X,3] -> uint8[size,size,3]: padded to a square, then Pillow's antialiased bicubic; bit-equal to official.

  Raises:
    SphinxError: another kind of array; a picture of floats in [0, 1] would come out black.
  """
  if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    got = f'{image.dtype}{list(image.shape)}' if isinstance(image, np.ndarray) else repr(type(image).__name__)
    raise errors.make('image', got, 'a uint8 array [rows, columns, 3]', "for instance np.asarray(picture.convert('RGB'))")
  square = pad_to_square(image)
  if square.shape[0] == size:
    return square
  return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
