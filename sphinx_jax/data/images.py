"""Image bytes -> the padded uint8 square that every encoder starts from (FACTS "Preprocessing")."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from sphinx_jax.core import errors
from sphinx_jax.data import squares
from sphinx_jax.data.record import BadExample

_LONGEST = 1 << 14  # pixels of an edge; the time of the resize grows with its square


def size(data: bytes) -> tuple[int, int]:
  """(width, height) in pixels, read from the head of PNG, JPEG, ... bytes. Raises BadExample as `decode` does."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      return image.size
  except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
    raise BadExample('unreadable image', f'{len(data)} bytes that are no image') from error


def decode(data: bytes) -> np.ndarray:
  """PNG, JPEG, ... -> uint8[Y,X,3] RGB, as Pillow's `convert('RGB')` has it, and so the official code.

  Grey becomes three equal channels, CMYK and palettes their colours; what is transparent shows the colour it hides; the
  orientation that a camera notes in EXIF is not applied, so that boxes stay with their pixels. Other than there, 16-bit
  grey keeps its high bytes, as 16-bit colour does; Pillow would cut it to white.

  Raises:
    BadExample: ('unreadable image') not an image, cut short, or too large (179 million pixels, or 16384 in a line).
  """
  return np.asarray(_open(data))


def square(data: bytes, size: int, mirrored: bool = False) -> np.ndarray:
  """`padded_resize(decode(data), size)`, of the picture left for right if `mirrored`; without the arrays in between.

  Raises:
    BadExample: as `decode`.
  """
  image = _open(data)
  image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
  return np.asarray(squares.padded_resize(image, size))


def padded_resize(image: np.ndarray, size: int) -> np.ndarray:
  """uint8[Y,X,3] -> uint8[size,size,3]: padded to a square of the longer edge, the left or top margin the floor of half the
  difference, then Pillow's antialiased bicubic; bit-equal to official.

  Raises:
    SphinxError: another kind of array; a picture of floats in [0, 1] would come out black.
  """
  if (
    not isinstance(image, np.ndarray)
    or image.dtype != np.uint8
    or image.ndim != 3
    or image.shape[2] != 3
    or not image.size
  ):
    got = (
      f'{image.dtype}{list(image.shape)}'
      if isinstance(image, np.ndarray)
      else repr(type(image).__name__)
    )
    raise errors.make(
      'image',
      got,
      'a uint8 array [rows, columns, 3]',
      "for instance np.asarray(picture.convert('RGB'))",
    )
  return np.asarray(squares.padded_resize(Image.fromarray(image), size))


def _open(data: bytes) -> Image.Image:
  try:
    with Image.open(io.BytesIO(data)) as image:
      if max(image.size) > _LONGEST:
        raise ValueError(
          f'{image.size[0]} x {image.size[1]} pixels, more than {_LONGEST} in a line'
        )
      if image.mode.startswith('I;16'):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
      if image.mode == 'RGB':
        image.load()
        return image  # convert would copy it.
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
