"""Padding and resizing in one equals both in turn, to the bit, whatever part of the square is left out."""

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.data import squares


def _both(height, width, size):
  """The square as it comes out, and as torchvision's pad and resize make it."""
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
  side = max(height, width)
  whole = Image.new('RGB', (side, side), squares.BACKGROUND)
  whole.paste(image, ((side - width) // 2, (side - height) // 2))
  return np.asarray(squares.padded_resize(image, size)), np.asarray(
    whole.resize((size, size), Image.Resampling.BICUBIC)
  )


@pytest.mark.parametrize('size', [8, 224, 336, 448, 1024])
@pytest.mark.parametrize(
  'height, width',
  [
    (1, 1),
    (1, 300),
    (17, 300),
    (2, 1),
    (300, 1),
    (300, 17),
    (480, 640),
    (640, 480),
    (427, 640),
    (112, 84),
    (512, 128),
    (97, 31),
    (223, 224),
    (448, 40),
    (600, 1024),
  ],
)
def test_equals_padding_and_then_resizing(height, width, size):
  np.testing.assert_array_equal(*_both(height, width, size))


def test_equals_it_for_any_sizes():
  draw = np.random.default_rng(1)
  trimmed = 0
  for _ in range(300):
    size, side = (
      int(draw.choice([7, 24, 32, 56, 64, 112])),
      int(draw.choice([1, 7, 8, 16, 32]) * draw.integers(1, 13)),
    )
    short = int(draw.integers(1, side + 1))
    height, width = (short, side) if draw.random() < 0.5 else (side, short)
    np.testing.assert_array_equal(*_both(height, width, size))
    trimmed += squares.reached((side - short) // 2, short, side, size) != (0, size)
  assert trimmed > 60


@pytest.mark.parametrize(
  'short, side, size, first, last',
  [
    (
      480,
      640,
      448,
      49,
      399,
    ),  # 7 resized pixels are 10 of the square, which begins at 80; the filter sees 2.9 to each side
    (480, 640, 336, 21, 315),
    (640, 640, 448, 0, 448),
    (479, 641, 448, 0, 448),  # no whole pixels meet
  ],
)
def test_only_what_the_picture_reaches_is_computed(short, side, size, first, last):
  assert squares.reached((side - short) // 2, short, side, size) == (first, last)
