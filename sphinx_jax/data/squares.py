"""Padding to a square and Pillow's bicubic resize, to the bit, without the work that would only see padding.

Of a 3:4 picture a quarter of the square is padding. Pillow resizes along rows, rounds to bytes, then along columns, each
pixel a weighted sum of a few; sums of padding alone are padding. So only the part that the picture reaches is computed.
"""

import functools
import math

import numpy as np
from PIL import Image

# CLIP's mean colour; it becomes about zero after normalisation.
BACKGROUND = (122, 116, 104)
_BICUBIC = Image.Resampling.BICUBIC


def padded_resize(image: Image.Image, size: int) -> Image.Image:
  """An RGB picture in the middle of a square of its longer edge (the left or top margin is the floor of half the difference),
  at `size` x `size` pixels."""
  width, height = image.size
  if width == height:
    return image.resize((size, size), _BICUBIC)
  side, short = max(width, height), min(width, height)
  margin = (side - short) // 2
  first, last = reached(margin, short, side, size)
  begin, end = first * side // size, last * side // size  # The same in pixels of the square.
  low, high = max(begin - _reach(side, size), 0), min(end + _reach(side, size), side)
  square = Image.new('RGB', (size, size), BACKGROUND)
  if width > height:
    image = image.resize(
      (size, height), _BICUBIC
    )  # Along rows, where all of padding would stay as it is.
    strip = Image.new('RGB', (size, high - low), BACKGROUND)
    strip.paste(image, (0, margin - low))
    square.paste(
      strip.resize((size, last - first), _BICUBIC, (0, begin - low, size, end - low)), (0, first)
    )
  else:
    strip = Image.new('RGB', (high - low, height), BACKGROUND)
    strip.paste(image, (margin - low, 0))
    # One after the other by hand: of a strip Pillow may take columns first, of a square it does not.
    rows = strip.resize((last - first, height), _BICUBIC, (begin - low, 0, end - low, height))
    square.paste(rows.resize((last - first, size), _BICUBIC), (first, 0))
  return square


def _reach(side: int, size: int) -> int:
  """Pixels of the square to each side that one resized pixel may see, and one more."""
  return math.ceil(2 * max(side / size, 1)) + 1


@functools.lru_cache(maxsize=1 << 14)
def reached(margin: int, short: int, side: int, size: int) -> tuple[int, int]:
  """Where to begin and end along the padded edge, in resized pixels: what is outside sees padding alone.

  Both are at whole pixels of the square, and what is between gets the very weights that it has in the whole square: Pillow
  rounds them to 22 bits, and none may lie so near the middle between two that another origin could round it the other way.
  Where that cannot be had it is all, (0, size).
  """
  whole = size // math.gcd(side, size)
  scale = side / size
  wide = max(scale, 1.0)  # The filter of a smaller picture is wider.
  first = max(math.floor((margin - 2 * wide) / scale / whole) * whole, 0)
  last = min(math.ceil((margin + short + 2 * wide) / scale / whole) * whole, size)
  centre = (np.arange(first, last)[:, None] + 0.5) * scale
  taps = np.floor(centre - 2 * wide) + np.arange(math.ceil(4 * wide) + 2)
  weights = _bicubic((taps + 0.5 - centre) / wide)
  weights = np.where((taps >= 0) & (taps < side), weights, 0)
  steps = weights / weights.sum(axis=1, keepdims=True) * (1 << 22)
  doubt = 16 * np.spacing(float(side)) / wide * (1 << 22)
  return (first, last) if (np.abs(steps - np.floor(steps) - 0.5) > doubt).all() else (0, size)


def _bicubic(x: np.ndarray) -> np.ndarray:
  """Keys' cubic with a = -0.5, as Pillow has it."""
  x = np.abs(x)
  return np.where(
    x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0)
  )
