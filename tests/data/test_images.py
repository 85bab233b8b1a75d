"""Image preprocessing, bit-equal to the official transform."""

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from sphinx_jax.core import errors
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample

GOLDEN = Path(__file__).parents[1] / 'golden/preproc'
META = json.loads((GOLDEN / 'meta.json').read_text())


def _encode(pixels, form='PNG'):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


@pytest.mark.parametrize('case', META['cases'])
def test_padded_resize_equals_official(case):
  image = images.decode((GOLDEN / f'{case}.png').read_bytes())
  for size, digest in META['cases'][case].items():
    resized = images.padded_resize(image, int(size))
    assert resized.shape == (int(size), int(size), 3) and resized.dtype == np.uint8
    assert hashlib.sha256(resized.transpose(2, 0, 1).tobytes()).hexdigest() == digest


def test_background_is_official():
  assert list(images.BACKGROUND) == META['bg_u8']


def _pad_then_resize(pixels, size):
  """The square as torchvision's pad and resize make it: padded as a whole, resized once."""
  height, width = pixels.shape[:2]
  side = max(height, width)
  padded = Image.new('RGB', (side, side), images.BACKGROUND)
  padded.paste(Image.fromarray(pixels), ((side - width) // 2, (side - height) // 2))
  return np.asarray(padded.resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize('size', [8, 224, 336, 448, 1024])
@pytest.mark.parametrize(
  'shape',
  [
    (1, 1),
    (1, 300),
    (17, 300),
    (2, 1),
    (300, 1),
    (480, 640),
    (640, 480),
    (427, 640),
    (128, 512),
    (97, 31),
    (223, 224),
    (40, 448),
    (600, 1024),
  ],
)
def test_padded_resize_equals_padding_and_then_resizing(shape, size):
  pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  want = _pad_then_resize(pixels, size)
  np.testing.assert_array_equal(images.padded_resize(pixels, size), want)


@pytest.mark.parametrize('shape, top, left', [((2, 5), 1, 0), ((5, 2), 0, 1), ((3, 3), 0, 0)])
def test_padding_is_the_floor_of_half(shape, top, left):
  image = np.full((*shape, 3), 7, np.uint8)
  square = images.padded_resize(image, max(shape))
  want = np.empty((max(shape), max(shape), 3), np.uint8)
  want[:] = images.BACKGROUND
  want[top : top + shape[0], left : left + shape[1]] = 7
  assert np.array_equal(square, want)


def test_odd_images_become_rgb_as_pillow_has_it():
  """Gray has three equal channels, and transparent pixels are opaque."""
  pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
  np.testing.assert_array_equal(images.decode(_encode(pixels)), pixels[..., :3])
  np.testing.assert_array_equal(
    images.decode(_encode(pixels[..., 0])), np.repeat(pixels[..., :1], 3, axis=-1)
  )
  for bits, form in (
    (pixels[..., 0] > 128, 'PNG'),
    (pixels[..., :3], 'GIF'),
  ):  # Black and white; a palette.
    assert images.decode(_encode(bits, form)).shape == (4, 6, 3)


def test_cmyk_becomes_rgb():
  file = io.BytesIO()
  Image.new('CMYK', (16, 16), (0, 255, 0, 0)).save(file, 'JPEG')
  assert images.decode(file.getvalue())[8, 8].tolist() == [255, 0, 255]


def test_16_bit_gray_keeps_its_high_bytes():
  pixels = np.random.default_rng(0).integers(0, 2**16, (4, 6), np.uint16)
  np.testing.assert_array_equal(
    images.decode(_encode(pixels)), np.repeat((pixels >> 8)[..., None], 3, axis=-1)
  )


def test_a_palette_with_a_transparent_color_shows_that_color():
  file, image = io.BytesIO(), Image.new('P', (4, 4), 1)
  image.putpalette([0, 0, 0, 9, 8, 7])
  image.save(file, 'PNG', transparency=1)
  assert (images.decode(file.getvalue()) == [9, 8, 7]).all()


def test_the_orientation_of_a_camera_is_not_applied():
  file, pixels, exif = io.BytesIO(), np.zeros((4, 6, 3), np.uint8), Image.Exif()
  exif[0x0112] = 6  # Orientation: rotate by 90 degrees.
  Image.fromarray(pixels).save(file, 'PNG', exif=exif)
  assert Image.open(io.BytesIO(file.getvalue())).getexif()[0x0112] == 6
  assert images.decode(file.getvalue()).shape == (4, 6, 3)


@pytest.mark.parametrize('shape', [(48, 64), (64, 48), (33, 33), (7, 90), (90, 7)])
@pytest.mark.parametrize('size', [24, 64, 100])
def test_square_of_bytes_equals_padded_resize_of_arrays(shape, size):
  data = _encode(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
  want = images.padded_resize(images.decode(data), size)
  np.testing.assert_array_equal(images.square(data, size), want)
  want = images.padded_resize(np.fliplr(images.decode(data)), size)
  np.testing.assert_array_equal(images.square(data, size, mirrored=True), want)


def _png_head(width, height):
  """A PNG whose header claims a large size, without pixels."""
  chunk = b'IHDR' + struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
  checksum = struct.pack('>I', zlib.crc32(chunk))
  return (
    b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + checksum + struct.pack('>I', 9) + b'IDAT'
  )


@pytest.mark.parametrize('width, height', [(16_000, 16_000), (20_000, 1), (1, 20_000)])
def test_huge_images_are_bad_examples_before_they_are_decoded(width, height):
  with pytest.raises(BadExample, match='pixels'):
    images.square(_png_head(width, height), 8)


def test_the_limit_of_pixels_is_not_that_of_another_program(monkeypatch):
  """Many programs switch Pillow's limit off."""
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
  assert images.padded_resize(np.zeros((4, 4, 3), np.uint8), 8).shape == (8, 8, 3)
  with pytest.raises(BadExample, match='more than 89478485'):
    images.square(_png_head(10_000, 10_000), 8)
  with pytest.raises(errors.SphinxError, match='got 100000000 pixels'):
    images.padded_resize(np.broadcast_to(np.uint8(0), (10_000, 10_000, 3)), 8)


@pytest.mark.parametrize(
  'spoil',
  [
    lambda data: b'',
    lambda data: b'no image',
    lambda data: data[: len(data) // 2],
    lambda data: data[:8] + data[20:],
  ],
)
@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_unreadable_images_are_bad_examples(spoil, form):
  data = _encode(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8), form)
  assert images.decode(data).shape == (40, 40, 3)
  with pytest.raises(BadExample) as caught:
    images.decode(spoil(data))
  assert caught.value.reason == 'unreadable image'


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def _rgb(gray):
  return np.repeat(np.asarray(gray, np.uint8)[..., None], 3, axis=-1)


def _palette(mode):
  """The ramp as an image with a gray palette."""
  image = Image.fromarray(RAMP, 'L').convert('P')
  return image if mode == 'P' else image.convert('RGBA').convert('PA')


# Every mode of Pillow: (mode, image of the ramp in it, largest difference from the ramp).
MODES = [
  ('1', lambda: Image.fromarray(RAMP > 127), 127),
  ('L', lambda: Image.fromarray(RAMP), 0),
  ('P', lambda: _palette('P'), 0),
  *(
    (mode, lambda mode=mode: Image.fromarray(_rgb(RAMP)).convert(mode), 0)
    for mode in ('LA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'HSV')
  ),
  ('La', lambda: Image.fromarray(RAMP).convert('LA').convert('La'), 0),
  ('PA', lambda: _palette('PA'), 0),
  ('YCbCr', lambda: Image.fromarray(_rgb(RAMP)).convert('YCbCr'), 1),
  (
    'LAB',
    lambda: ImageCms.profileToProfile(
      Image.fromarray(_rgb(RAMP)),
      ImageCms.createProfile('sRGB'),
      ImageCms.createProfile('LAB'),
      outputMode='LAB',
    ),
    3,
  ),
  ('I', lambda: Image.fromarray(257 * RAMP.astype(np.int32)), 0),
  ('F', lambda: Image.fromarray(RAMP.astype(np.float32) / 255), 0),
  ('I;16', lambda: Image.fromarray(257 * RAMP.astype(np.uint16)), 0),
  *(
    (
      mode,
      lambda mode=mode, order=order: Image.frombytes(
        mode, (16, 16), (257 * RAMP.astype(np.uint16)).astype(order).tobytes()
      ),
      0,
    )
    for mode, order in (('I;16B', '>u2'), ('I;16L', '<u2'), ('I;16N', '=u2'))
  ),
]


@pytest.mark.parametrize('mode, make, tolerance', MODES, ids=[mode for mode, *_ in MODES])
def test_a_ramp_is_the_ramp_in_every_mode(mode, make, tolerance):
  image = make()
  assert image.mode == mode
  pixels = np.asarray(images.to_rgb(image)).astype(int)
  assert np.abs(pixels - _rgb(RAMP)).max() <= tolerance


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize('high, shift', [(255, 0), (4095, 4), (65535, 8)])
def test_deep_gray_keeps_the_high_byte_of_its_range(dtype, high, shift):
  values = np.linspace(0, high, 300).round().astype(dtype).reshape(15, 20)
  want = _rgb(values.astype(int) >> shift)
  np.testing.assert_array_equal(images.decode(_encode(values, 'TIFF')), want)


def test_gray_tiffs_that_store_white_as_zero_are_not_inverted():
  values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
  file = io.BytesIO()
  Image.fromarray(65535 - values).save(file, 'TIFF', tiffinfo={262: 0})
  np.testing.assert_array_equal(images.decode(file.getvalue()), _rgb(RAMP))


@pytest.mark.parametrize(
  'values',
  [
    np.array([[0.0, np.nan]]),
    np.array([[0.0, np.inf]]),
    np.array([[-0.5, 0.5]]),
    np.array([[0.0, 2.5]]),
    np.array([[0.0, 1e6]]),
    np.array([[-1, 5]], np.int32),
    np.array([[0, 65536]], np.int32),
  ],
)
def test_gray_of_an_unknown_range_is_a_bad_example(values):
  values = values.astype(np.float32) if values.dtype == float else values
  with pytest.raises(BadExample, match='pixels from .* expected 0..') as caught:
    images.decode(_encode(values, 'TIFF'))
  assert caught.value.reason == 'unreadable image'


def _transparent(mode):
  """An encoded image of two red pixels, of which the second is transparent."""
  file = io.BytesIO()
  if mode == 'P':
    image = Image.new('P', (2, 1))
    image.putpalette([255, 0, 0, 255, 0, 0])
    image.putdata([0, 1])
    image.save(file, 'PNG', transparency=1)
  elif mode == 'GIF':
    image = Image.new('P', (2, 1))
    image.putpalette([255, 0, 0, 255, 0, 0])
    image.putdata([0, 1])
    image.save(file, 'GIF', transparency=1)
  elif mode == 'RGB':
    Image.fromarray(np.array([[[255, 0, 1], [255, 0, 0]]], np.uint8)).save(
      file, 'PNG', transparency=(255, 0, 0)
    )
  else:
    image = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8))
    image.save(file, mode, **({'lossless': True, 'exact': True} if mode == 'WEBP' else {}))
  return file.getvalue()


@pytest.mark.parametrize('mode', ['PNG', 'WEBP', 'TIFF', 'P', 'GIF', 'RGB'])
def test_transparent_pixels_are_noted_and_may_stand_on_white(mode):
  data, notes = _transparent(mode), []
  dropped = images.decode(data, note=notes.append)
  assert np.abs(dropped[0].astype(int) - [255, 0, 0]).max() <= 1
  assert notes == ["transparent pixels, in their hidden colors (image.alpha='drop')"]
  white = images.decode(data, 'white', notes.append)
  assert np.abs(white[0, 0].astype(int) - [255, 0, 0]).max() <= 1
  assert white[0, 1].tolist() == [255, 255, 255] and 'on white' in notes[1]
  np.testing.assert_array_equal(
    images.square(data, 2, alpha='white'), images.padded_resize(white, 2)
  )


def test_a_transparent_shade_of_16_bit_gray_stands_on_white():
  file = io.BytesIO()
  Image.fromarray(np.array([[0x1000, 0x8000]], np.uint16)).save(file, 'PNG')
  data = file.getvalue()
  key = b'tRNS\x10\x00'
  chunk = struct.pack('>I', 2) + key + struct.pack('>I', zlib.crc32(key))
  data = data[:33] + chunk + data[33:]  # After IHDR.
  assert images.decode(data)[0, :, 0].tolist() == [0x10, 0x80]
  assert images.decode(data, 'white')[0, :, 0].tolist() == [255, 0x80]


def test_opaque_images_with_an_alpha_channel_are_not_noted():
  pixels, notes = np.full((4, 6, 4), 255, np.uint8), []
  pixels[..., 0] = 7
  for alpha in images.ALPHA:
    np.testing.assert_array_equal(
      images.decode(_encode(pixels), alpha, notes.append), pixels[..., :3]
    )
  assert notes == []


@pytest.mark.parametrize('form', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_the_first_frame_of_an_animation_is_taken(form):
  file = io.BytesIO()
  frames = [Image.new('RGB', (8, 6), color) for color in ('red', 'lime', 'blue')]
  frames[0].save(file, form, save_all=True, append_images=frames[1:])
  assert Image.open(io.BytesIO(file.getvalue())).n_frames == 3
  assert np.abs(images.decode(file.getvalue()).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP'])
def test_images_that_a_camera_turned_are_noted(form):
  for orientation, turned in ((None, False), (1, False), (6, True), (9, False)):
    file, exif, notes = io.BytesIO(), Image.Exif(), []
    if orientation:
      exif[0x0112] = orientation
    Image.new('RGB', (8, 6)).save(file, form, exif=exif)
    assert images.decode(file.getvalue(), note=notes.append).shape == (6, 8, 3)
    assert notes == ['an EXIF orientation, as stored'] * turned


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_a_damaged_exif_block_does_not_hide_the_pixels():
  file = io.BytesIO()
  Image.new('RGB', (8, 6)).save(file, 'JPEG', exif=b'Exif\0\0II*\0damaged')
  assert images.size(file.getvalue()) == (8, 6)
  assert images.decode(file.getvalue(), note=print).shape == (6, 8, 3)


def _png_with_notes(kind, size):
  text = {'zTXt': b'prompt\0\0', 'iTXt': b'prompt\0\1\0\0\0', 'iCCP': b'profile\0\0'}[kind]
  chunk = kind.encode() + text + zlib.compress(b'x' * size)
  packed = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
  data = _encode(_rgb(RAMP))
  return data[:33] + packed + data[33:], data[:-12] + packed + data[-12:]  # At both ends.


@pytest.mark.parametrize('kind', ['zTXt', 'iTXt', 'iCCP'])
def test_notes_of_any_size_do_not_hide_the_pixels(kind):
  for data in _png_with_notes(kind, 3_000_000):
    np.testing.assert_array_equal(images.decode(data), _rgb(RAMP))
    assert images.size(data) == (16, 16)


def test_too_many_small_notes_do_not_hide_the_pixels(monkeypatch):
  monkeypatch.setattr(PngImagePlugin, 'MAX_TEXT_MEMORY', 100)
  for data in _png_with_notes('zTXt', 1000):
    np.testing.assert_array_equal(images.decode(data), _rgb(RAMP))


@pytest.mark.parametrize(
  'data, name',
  [
    (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(40), 'HEIC'),
    (b'\0\0\0\x18ftypmif1\0\0\0\0mif1heic' + bytes(40), 'HEIC'),
    (b'\0\0\0\x18ftypavif\0\0\0\0mif1avif' + bytes(40), 'AVIF'),
    (b'\0\0\0\x18ftypisom\0\0\0\0isommp42' + bytes(40), 'a video'),
    (b'\xff\x0a' + bytes(40), 'JPEG XL'),
    (b'\0\0\0\x0cJXL \r\n\x87\n' + bytes(40), 'JPEG XL'),
    (b'<svg xmlns="http://www.w3.org/2000/svg" width="4"/>', 'SVG'),
    (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg/>', 'SVG'),
    (b'%PDF-1.7\n%\xe2\xe3', 'PDF'),
    (b'<!DOCTYPE html><html><body>404</body>', 'an HTML page'),
    (b'\n<!-- 404 -->\n<html>', 'an HTML page'),
    (b'<?xml version="1.0"?><Error>AccessDenied</Error>', 'XML'),
    (b'data:image/png;base64,iVBORw0KGgoAAAA', 'base64 text'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'a git-lfs pointer'),
    (b'\x93NUMPY\x01\x00v\0', 'a NumPy array'),
    (bytes(100), 'zero bytes only'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n', 'EPS'),
    (b'\x89PNG\r\n\x1a\n', 'PNG'),
    (b'\x00\x00\x01\xb3\x14\x00\xf0' + bytes(100), 'image'),  # A video stream that Pillow opens.
  ],
)
def test_other_files_are_named_in_the_message(data, name):
  with pytest.raises(BadExample, match=name) as caught:
    images.decode(data)
  assert caught.value.reason == 'unreadable image'


def _damaged(data, rng):
  """The file with a few of its bytes changed, cut out or repeated."""
  data = bytearray(data)
  for _ in range(rng.integers(1, 6)):
    place = int(rng.integers(len(data)))
    match rng.integers(4):
      case 0:
        data[place] = int(rng.integers(256))
      case 1:
        del data[place : place + int(rng.integers(1, 40))]
      case 2:
        data[place:place] = data[place : place + 20]
      case 3:
        data[place : place + 4] = bytes(4)
    data = data or bytearray(1)
  return bytes(data)


@pytest.mark.parametrize(
  'rounds', [3, pytest.param(100, marks=pytest.mark.slow)], ids=['some', 'many']
)
@pytest.mark.filterwarnings('ignore')  # Pillow warns about damaged EXIF blocks.
def test_damaged_files_give_pixels_or_a_bad_example(rounds):
  rng = np.random.default_rng(0)
  exif = Image.Exif()
  exif[0x0112] = 6
  image = Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8))
  for form in ('PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'JPEG2000', 'TGA', 'ICO'):
    file = io.BytesIO()
    image.save(file, form, **({'exif': exif} if form in ('PNG', 'JPEG', 'WEBP', 'TIFF') else {}))
    for _ in range(rounds):
      data = _damaged(file.getvalue(), rng)
      for read in (images.size, lambda data: images.square(data, 8)):
        try:
          result = read(data)
        except BadExample as error:
          assert error.reason == 'unreadable image'
        else:
          assert min(result) > 0 if read is images.size else result.shape == (8, 8, 3)


@pytest.mark.parametrize(
  'array',
  [
    np.zeros((4, 6, 3)),
    np.zeros((4, 6, 3), np.int64),
    np.zeros((4, 6), np.uint8),
    np.zeros((4, 6, 4), np.uint8),
    np.zeros((3, 4, 6), np.uint8),
    np.zeros((1, 4, 6, 3), np.uint8),
    np.zeros((0, 6, 3), np.uint8),
    np.zeros((4, 6, 3), bool),
    [[[0, 0, 0]]],
    Image.new('RGB', (2, 2)),
  ],
)
def test_arrays_that_are_no_images_are_refused(array):
  with pytest.raises(errors.SphinxError, match=r'expected a uint8 array \[rows, columns, 3\]'):
    images.padded_resize(array, 8)


def test_arrays_with_a_huge_edge_are_refused():
  with pytest.raises(errors.SphinxError, match='an edge of 40000 pixels'):
    images.padded_resize(np.zeros((40_000, 1, 3), np.uint8), 8)
