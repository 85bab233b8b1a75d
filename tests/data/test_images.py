"""Image preprocessing, bit-equal to the official transform."""

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
