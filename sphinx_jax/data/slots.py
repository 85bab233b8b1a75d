"""What an image becomes in a batch: the pixels of one slot, or of five if it is split.

The rule belongs to the model. SPHINX sees padded squares, Idefics2 images of their own shape
(docs/idefics2.md, "Splitting" and "Resizing").
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample


class Slots(NamedTuple):
  """An image as a model sees it. `pixels` are its slots, uint8[Y,X,3] each."""

  pixels: tuple[np.ndarray, ...]


class Rule(abc.ABC):
  """How an image becomes slots.

  Attributes:
    count: slots of an image.
    upright: whether an EXIF orientation is applied.
  """

  count: int
  upright: bool

  @abc.abstractmethod
  def __call__(self, image: Image.Image) -> Slots:
    """Returns the slots of an RGB image. Raises BadExample for one that cannot be split."""

  @abc.abstractmethod
  def sizes(self, width: int, height: int) -> list[tuple[int, int]]:
    """Width and height of the slots of an image. Raises as `__call__`."""

  def read(
    self,
    data: bytes,
    mirrored: bool = False,
    alpha: str = 'drop',
    note: Callable[[str], None] | None = None,
  ) -> Slots:
    """Decodes an image file straight to its slots; arguments as of `images.open_rgb`.

    Raises:
      BadExample: as `images.decode`, or an image that cannot be split.
    """
    return self(images.open_rgb(data, mirrored, alpha, note, self.upright))


@dataclasses.dataclass(frozen=True)
class Square(Rule):
  """One padded square an image.

  Attributes:
    size: its edge in pixels.
  """

  size: int

  count = 1
  upright = False  # Boxes refer to the stored pixels, so an EXIF orientation is ignored.

  def __call__(self, image: Image.Image) -> Slots:
    return Slots((np.asarray(images.pad_and_resize(image, self.size)),))

  def sizes(self, width: int, height: int) -> list[tuple[int, int]]:
    return [(self.size, self.size)]


@dataclasses.dataclass(frozen=True)
class Fit(Rule):
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
    return 5 if self.split else 1

  def __call__(self, image: Image.Image) -> Slots:
    parts = map(image.crop, _quarters(*image.size)) if self.split else ()
    sizes = self.sizes(*image.size)
    resized = (
      part.resize(size, Image.Resampling.BILINEAR) for part, size in zip([*parts, image], sizes)
    )
    return Slots(tuple(map(np.asarray, resized)))

  def sizes(self, width: int, height: int) -> list[tuple[int, int]]:
    boxes = _quarters(width, height) if self.split else []
    parts = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    return [self._size(*part) for part in (*parts, (width, height))]

  def _size(self, width: int, height: int) -> tuple[int, int]:
    """Pixels after resizing. Extreme shapes are distorted, as both edges reach `shortest`."""
    ratio = width / height
    if width >= height and width > self.longest:
      width, height = self.longest, int(self.longest / ratio)
    elif height > width and height > self.longest:
      width, height = int(self.longest * ratio), self.longest
    return max(width, self.shortest), max(height, self.shortest)


RULES = {'square': Square, 'fit': Fit}


def make(kind: str, **settings: Any) -> Rule:
  """The rule of a model family: a class in RULES, and its attributes."""
  return RULES[kind](**settings)


def _quarters(width: int, height: int) -> list[tuple[int, int, int, int]]:
  """Boxes of the quarters, row by row. An odd pixel belongs to the right or the bottom."""
  x, y = width // 2, height // 2
  if not x or not y:
    raise BadExample('unreadable image', f'{width} x {height} pixels cannot be split into quarters')
  return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]


def on_canvas(
  slots: Sequence[np.ndarray], shape: tuple[int, int], count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Puts slots on canvases of one shape.

  Args:
    slots: uint8[Y,X,3] each.
    shape: rows and columns of a canvas, at least those of every slot.
    count: number of canvases; None: as many as slots.

  Returns:
    uint8[count,*shape,3] with the slots in the upper left corners and zeros elsewhere, and their
    sizes int32[count,2], rows and columns.
  """
  count = len(slots) if count is None else count
  canvas, sizes = np.zeros((count, *shape, 3), np.uint8), np.zeros((count, 2), np.int32)
  for to, size, slot in zip(canvas, sizes, slots):
    place(slot, to, size)
  return canvas, sizes


def place(slot: np.ndarray, canvas: np.ndarray, size: np.ndarray) -> None:
  """Writes a slot into the upper left corner of a canvas, zeros around it, and its size."""
  height, width = size[:] = slot.shape[:2]
  canvas[:height, :width] = slot
  canvas[height:] = 0
  canvas[:height, width:] = 0
