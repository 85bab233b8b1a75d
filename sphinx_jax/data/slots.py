"""What an image becomes in a batch: the pixels of one slot, or of five if it is split.

The rule belongs to the model. SPHINX sees padded squares, Idefics2 images of their own shape
(docs/idefics2.md, "Splitting" and "Resizing").
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample


@dataclasses.dataclass(frozen=True)
class Square:
  """One padded square an image.

  Attributes:
    size: its edge in pixels.
  """

  size: int

  count = 1  # Slots of an image.
  upright = False  # Boxes refer to the stored pixels, so an EXIF orientation is ignored.

  def __call__(self, image: Image.Image) -> list[np.ndarray]:
    """Returns the slots of an RGB image, uint8[size,size,3] each."""
    return [np.asarray(images.pad_and_resize(image, self.size))]


@dataclasses.dataclass(frozen=True)
class Fit:
  """An image of its own shape, between two edges; or its four quarters and the whole.

  Attributes:
    shortest: least pixels of an edge.
    longest: most pixels of an edge, the canvas of a slot.
    split: whether the four quarters come before the whole.
  """

  shortest: int
  longest: int
  split: bool = False

  upright = True  # As the processor of transformers, which applies an EXIF orientation.

  @property
  def count(self) -> int:
    """Slots of an image."""
    return 5 if self.split else 1

  def __call__(self, image: Image.Image) -> list[np.ndarray]:
    """Returns the slots of an RGB image, uint8[Y,X,3] each.

    Raises:
      BadExample: an image of one pixel along an edge cannot be split.
    """
    parts = [*_quarters(image), image] if self.split else [image]
    return [
      np.asarray(part.resize(self._size(*part.size), Image.Resampling.BILINEAR)) for part in parts
    ]

  def _size(self, width: int, height: int) -> tuple[int, int]:
    """Pixels after resizing. Extreme shapes are distorted, as both edges reach `shortest`."""
    ratio = width / height
    if width >= height and width > self.longest:
      width, height = self.longest, int(self.longest / ratio)
    elif height > width and height > self.longest:
      width, height = int(self.longest * ratio), self.longest
    return max(width, self.shortest), max(height, self.shortest)


def _quarters(image: Image.Image) -> list[Image.Image]:
  """The quarters, row by row. An odd pixel belongs to the right or the bottom."""
  width, height = image.size
  x, y = width // 2, height // 2
  if not x or not y:
    raise BadExample('unreadable image', f'{width} x {height} pixels cannot be split into quarters')
  boxes = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
  return [image.crop(box) for box in boxes]


def on_canvas(slots: Sequence[np.ndarray], edge: int) -> tuple[np.ndarray, np.ndarray]:
  """Puts slots on square canvases.

  Args:
    slots: uint8[Y,X,3] each, at most `edge` pixels along each side.
    edge: of the canvas.

  Returns:
    uint8[len(slots),edge,edge,3] with the slots in the upper left corners and zeros around them,
    and their sizes int32[len(slots),2], rows and columns.
  """
  canvas = np.zeros((len(slots), edge, edge, 3), np.uint8)
  sizes = np.array([slot.shape[:2] for slot in slots], np.int32).reshape(-1, 2)
  for to, slot, (height, width) in zip(canvas, slots, sizes):
    to[:height, :width] = slot
  return canvas, sizes
