"""Image bytes -> the padded uint8 square that every encoder takes.

Source: docs/official_sphinx.md, "Preprocessing".
"""

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sphinx_jax.core import errors, file_forms
from sphinx_jax.data.record import BadExample

# CLIP's mean color. It becomes about zero after normalization.
BACKGROUND = (122, 116, 104)
# Endings of the names of image files. What Pillow cannot read is found when it is opened.
ENDINGS = tuple(
  'avif bmp gif heic heif jfif jp2 jpe jpeg jpg pbm pgm png ppm tif tiff webp'.split()
)
# What happens to transparent pixels: they show their hidden color, or stand on white.
ALPHA = {'drop': 'in their hidden colors', 'white': 'on white'}
# Pixels of an image: Pillow's own limit, which another part of a program may have switched off.
# Larger ones are refused here, so Pillow's warning about them is not needed.
_MAX_PIXELS = 89_478_485
warnings.simplefilter('ignore', Image.DecompressionBombWarning)
_MAX_EDGE = 1 << 14  # Pixels. The time of the resize grows with the square of the longer edge.

_PHOTOMETRIC, _WHITE_IS_ZERO = ExifTags.Base.PhotometricInterpretation, 0  # A TIFF's tag.


class Frame(NamedTuple):
  """The pixels of an image file.

  Attributes:
    width: of the stored pixels.
    height: of the stored pixels.
    orientation: EXIF number of how viewers turn them, see orientation.py; 1: not at all.
  """

  width: int
  height: int
  orientation: int


def frame(image: Path | bytes) -> Frame:
  """Returns the frame of an encoded image from its header.

  Args:
    image: a file or its content.

  Raises:
    BadExample: as `decode`.
    OSError: the file cannot be read.
  """

  def use(opened: Image.Image) -> Frame:
    turned = opened.getexif()[ExifTags.Base.Orientation] if _is_turned(opened) else 1
    return Frame(*opened.size, turned)

  return _read(image, use) if isinstance(image, bytes) else _read_head(image, use)


def size(data: bytes) -> tuple[int, int]:
  """Returns (width, height) in pixels from the header of an encoded image.

  Raises:
    BadExample: as `decode`.
  """
  return _read(data, lambda image: image.size)


def head_size(path: Path) -> tuple[int, int]:
  """Returns `size` of a file, of which only the head is read if it is in order.

  Raises:
    BadExample: as `decode`.
    OSError: the file cannot be read.
  """
  return _read_head(path, lambda image: image.size)


def _read_head(path: Path, use: Callable[[Image.Image], Any]) -> Any:
  """Returns `use(image)` for a file, of which only the head is read if it is in order."""
  with contextlib.suppress(Exception):  # `_read` finds what is wrong.
    with Image.open(path) as image:
      if _fault_of_size(image) is None:
        return use(image)
  return _read(path.read_bytes(), use)


def decode(
  data: bytes,
  alpha: str = 'drop',
  note: Callable[[str], None] | None = None,
  upright: bool = False,
) -> np.ndarray:
  """Decodes an image file (PNG, JPEG, ...) to uint8[Y,X,3] RGB, like Pillow's `convert('RGB')`.

  The official code uses the same conversion. Gray becomes three equal channels, CMYK and palettes
  become RGB, and of an animation the first frame is taken. EXIF orientation is ignored, because
  boxes refer to the stored pixels. One case differs from Pillow, which would clip to white: gray
  with more than 8 bits keeps the high byte of its range (see `_to_8_bits`).

  Args:
    data: encoded file.
    alpha: a key of ALPHA.
    note: called with a phrase about an image with transparent pixels or an EXIF orientation.
    upright: apply an EXIF orientation, instead of ignoring it.

  Raises:
    BadExample: ('unreadable image') the data is not an image, is truncated, has gray values of an
      unknown range, or is too large (more than 89 million pixels, or an edge of more than 16384
      pixels).
  """
  return np.asarray(open_rgb(data, False, alpha, note, upright))


def beside(pixels: Sequence[np.ndarray]) -> np.ndarray:
  """Puts images side by side to be looked at, uint8[Y,X,3] each; a single one stays as it is."""
  height = max(image.shape[0] for image in pixels)
  gap = 8 if len(pixels) > 1 else 0
  padded = [
    np.pad(image, ((0, height - image.shape[0]), (0, gap), (0, 0)), constant_values=255)
    for image in pixels
  ]
  return np.concatenate(padded, axis=1)[:, : -gap or None]


def to_rgb(
  image: Image.Image, alpha: str = 'drop', note: Callable[[str], None] | None = None
) -> Image.Image:
  """Converts an opened image as `decode` does. Raises ValueError for an unknown range of gray."""
  image.load()
  note = note or (lambda phrase: None)
  if _is_turned(image):
    note('an EXIF orientation, as stored')
  if image.mode == 'La':  # Pillow converts premultiplied gray to nothing else.
    image = image.convert('LA')
  if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
    image = _to_8_bits(image)
  if image.has_transparency_data:
    image = image.convert('RGBA')
    if image.getchannel('A').getextrema()[0] < 255:
      note(f"transparent pixels, {ALPHA[alpha]} (image.alpha='{alpha}')")
      if alpha == 'white':
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return image if image.mode == 'RGB' else image.convert('RGB')  # `convert` would copy RGB.


def open_rgb(
  data: bytes,
  mirrored: bool = False,
  alpha: str = 'drop',
  note: Callable[[str], None] | None = None,
  upright: bool = False,
) -> Image.Image:
  """Decodes an image file to an RGB image, without a copy of its pixels.

  Args:
    data: encoded file.
    mirrored: flip the image left to right.
    alpha: as in `decode`.
    note: as in `decode`.
    upright: apply an EXIF orientation, instead of ignoring it.

  Raises:
    BadExample: as `decode`.
  """

  def use(image: Image.Image) -> Image.Image:
    return to_rgb(ImageOps.exif_transpose(image) if upright else image, alpha, note)

  image = _read(data, use)
  return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def square(
  data: bytes,
  size: int,
  mirrored: bool = False,
  alpha: str = 'drop',
  note: Callable[[str], None] | None = None,
) -> np.ndarray:
  """Decodes an image file straight to its padded square uint8[size,size,3].

  Args:
    data: encoded file.
    size: edge of the square in pixels.
    mirrored: flip the image left to right before padding.
    alpha: as in `decode`.
    note: as in `decode`.

  Raises:
    BadExample: as `decode`.
  """
  return np.asarray(pad_and_resize(open_rgb(data, mirrored, alpha, note), size))


def padded_resize(image: np.ndarray, size: int) -> np.ndarray:
  """Pads an image to a square and resizes it, bit-equal to the official transform.

  Args:
    image: uint8[Y,X,3].
    size: edge of the result in pixels.

  Returns:
    uint8[size,size,3].

  Raises:
    SphinxError: as `from_array`.
  """
  return np.asarray(pad_and_resize(from_array(image), size))


def from_array(image: np.ndarray) -> Image.Image:
  """Returns the image of an array uint8[Y,X,3].

  Raises:
    SphinxError: another kind of array (an image of floats in [0, 1] would come out black), an edge
      of more than 16384 pixels, or more than 89 million pixels.
  """
  is_array = isinstance(image, np.ndarray)
  if is_array and max(image.shape, default=0) > _MAX_EDGE:
    raise errors.make(
      'image', f'an edge of {max(image.shape)} pixels', f'at most {_MAX_EDGE}', 'resize it'
    )
  count = math.prod(image.shape[:2]) if is_array else 0
  if count > _MAX_PIXELS:
    raise errors.make('image', f'{count} pixels', f'at most {_MAX_PIXELS}', 'resize it')
  if not is_array or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
    got = f'{image.dtype}{list(image.shape)}' if is_array else repr(type(image).__name__)
    raise errors.make(
      'image',
      got,
      'a uint8 array [rows, columns, 3]',
      "convert it, for example with np.asarray(image.convert('RGB'))",
    )
  return Image.fromarray(image)


def pad_and_resize(image: Image.Image, size: int) -> Image.Image:
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


def _read(data: bytes, use: Callable[[Image.Image], Any]) -> Any:
  """Opens an image file and returns `use(image)`. Raises BadExample, see `decode`."""

  def open_and_use(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
      fault = _fault_of_size(image)
      if fault:
        raise ValueError(fault)
      return use(image)

  try:
    try:
      return open_and_use(data)
    except ValueError as error:
      if 'MAX_TEXT' not in str(error):  # Pillow's limits on the text beside the pixels of a PNG.
        raise
      return open_and_use(_without_notes(data))
  except Exception as error:  # Decoders raise anything for damaged files.
    raise BadExample('unreadable image', _fault(data, error)) from error


def _fault_of_size(image: Image.Image) -> str | None:
  width, height = image.size
  if not 1 <= min(image.size) <= max(image.size) <= _MAX_EDGE:
    return f'{width} x {height} pixels, an edge may have 1 to {_MAX_EDGE}'
  if width * height > _MAX_PIXELS:
    return f'{width} x {height} pixels, more than {_MAX_PIXELS}'
  return None


def _fault(data: bytes, error: Exception) -> str:
  """Returns why an image file cannot be read, with the format that its first bytes show."""
  form = file_forms.name(data)
  if not isinstance(error, UnidentifiedImageError):
    return f'{form or "image"} of {len(data)} bytes: {str(error) or type(error).__name__}'
  if form is None:
    return f'{len(data)} bytes that are no image'
  return f'{len(data)} bytes of {form} that Pillow cannot read as an image'


def _without_notes(png: bytes) -> bytes:
  """Returns a PNG file without its texts and color profile, which the pixels do not need."""
  kept, begin = [png[:8]], 8
  while begin < len(png):
    end = begin + 12 + int.from_bytes(png[begin : begin + 4], 'big')
    if png[begin + 4 : begin + 8] not in (b'tEXt', b'zTXt', b'iTXt', b'iCCP'):
      kept.append(png[begin:end])
    begin = end
  return b''.join(kept)


def _is_turned(image: Image.Image) -> bool:
  """Whether viewers would rotate or mirror the stored pixels."""
  if 'exif' not in image.info:  # Pillow itself applies the orientation of a TIFF.
    return False
  try:
    return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
  except Exception:  # A damaged EXIF block does not spoil the pixels.
    return False


def _to_8_bits(image: Image.Image) -> Image.Image:
  """Converts gray with more than 8 bits, by the range that its largest value needs.

  Whole numbers have 8, 12 or 16 bits; the highest 8 of them are kept, as Pillow does for 16-bit
  color. Floats up to 1 are scaled to 255. From 16 on they are rounded to whole numbers. What
  lies between would be black as whole numbers and white as scaled floats.

  Raises:
    ValueError: any other value.
  """
  values = np.asarray(image)
  low, high = values.min(), values.max()
  is_float = values.dtype.kind == 'f'
  if not 0 <= low <= high <= 65535 or (is_float and 1 < high < 16):  # NaN fails the comparison.
    expected = '0..1 or 0..65535, with a maximum of at least 16' if is_float else '0..65535'
    raise ValueError(f'{values.dtype} pixels from {low:g} to {high:g}, expected {expected}')
  if is_float and high <= 1:
    pixels = np.rint(255 * values)
  else:
    whole = np.rint(values).astype(np.int32) if is_float else values
    pixels = whole >> (8 if high > 4095 else 4 if high > 255 else 0)
  if getattr(image, 'tag_v2', {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
    pixels = 255 - pixels
  gray = Image.fromarray(pixels.astype(np.uint8))
  if 'transparency' in image.info:
    gray.putalpha(Image.fromarray(values != image.info['transparency']).convert('L'))
  return gray
