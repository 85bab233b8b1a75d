"""Preprocessing, bit for bit against the official transform."""

import hashlib
import io
import json
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


@pytest.mark.parametrize('shape, top, left', [((2, 5), 1, 0), ((5, 2), 0, 1), ((3, 3), 0, 0)])
def test_padding_is_the_floor_of_half(shape, top, left):
  image = np.full((*shape, 3), 7, np.uint8)
  square = images.pad_to_square(image)
  want = np.empty((max(shape), max(shape), 3), np.uint8)
  want[:] = images.BACKGROUND
  want[top:top + shape[0], left:left + shape[1]] = 7
  assert np.array_equal(square, want)


def test_odd_images_become_rgb_as_pillow_has_it():
  """Grey in three channels, what is transparent as if it were not (FACTS: `convert('RGB')`)."""
  pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
  np.testing.assert_array_equal(images.decode(_encode(pixels)), pixels[..., :3])
  np.testing.assert_array_equal(images.decode(_encode(pixels[..., 0])), np.repeat(pixels[..., :1], 3, axis=-1))
  for bits, form in ((pixels[..., 0] > 128, 'PNG'), (pixels[..., :3], 'GIF')):  # Black and white; a palette.
    assert images.decode(_encode(bits, form)).shape == (4, 6, 3)


@pytest.mark.parametrize('shape', [(1, 1), (1, 300), (17, 300), (2, 1)])
def test_thin_images_keep_their_place_in_the_square(shape):
  """As torchvision's pad and resize do it: Pillow's bicubic of the square with the background around the picture."""
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  square = Image.new('RGB', (max(shape), max(shape)), images.BACKGROUND)
  square.paste(Image.fromarray(image), ((max(shape) - shape[1]) // 2, (max(shape) - shape[0]) // 2))
  for size in (224, 448):
    want = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images.padded_resize(image, size), want)


@pytest.mark.parametrize('spoil', [lambda data: b'', lambda data: b'no image', lambda data: data[:len(data) // 2],
                                   lambda data: data[:8] + data[20:]])
@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_unreadable_images_are_bad_examples(spoil, form):
  data = _encode(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8), form)
  assert images.decode(data).shape == (40, 40, 3)
  with pytest.raises(BadExample) as caught:
    images.decode(spoil(data))
  assert caught.value.reason == 'unreadable image'
