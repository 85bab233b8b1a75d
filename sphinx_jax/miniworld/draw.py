"""Anti-aliased drawing in [0, 1] coordinates, with the tight box of every drawn thing."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]  # RGB, 0 to 255.
Point = tuple[float, float]  # x, y in [0, 1].
Box = Sequence[float]  # x1, y1, x2, y2 in [0, 1].

# Canvas pixels per image pixel and axis. Boxes are exact to 1 / (FINE * size).
FINE = 4

COLORS = {
  'red': (208, 28, 38),
  'green': (40, 158, 62),
  'blue': (36, 88, 216),
  'yellow': (248, 208, 24),
  'purple': (146, 52, 190),
  'orange': (248, 128, 16),
}
DARK = (40, 40, 46)
WHITE = (252, 252, 252)


def jitter(color: Color, rng: np.random.Generator, amount: int = 12) -> Color:
  """Returns a color near `color`. Each channel moves by at most `amount`."""
  moves = rng.integers(-amount, amount + 1, 3).tolist()
  return tuple(min(max(channel + move, 0), 255) for channel, move in zip(color, moves, strict=True))


def shade(color: Color, factor: float) -> Color:
  """Returns a darker (factor < 1) or lighter (factor > 1, towards white) color."""
  if factor <= 1:
    return tuple(int(c * factor) for c in color)
  return tuple(int(255 - (255 - c) * (2 - factor)) for c in color)


def lattice(rng: np.random.Generator, side: float) -> float:
  """Returns where a length of `side` begins so that it lies in whole cells of a 4 x 4 lattice.

  A cell is what a patch of the small encoders' global view sees, and a pooled token of their
  sub-images. A model that trains for minutes learns the look of things that fill cells much sooner
  than that of things that are cut at any place.
  """
  cells = min(math.ceil(side * 4), 4)
  return int(rng.integers(5 - cells)) / 4 + (cells / 4 - side) * rng.uniform(0.3, 0.7)


def background(
  rng: np.random.Generator,
  size: int,
  low: float = 104,
  high: float = 126,
  tint: float = 9,
  noise: int = 2,
) -> np.ndarray:
  """Returns a gray, slightly tinted and mottled ground, float32[size,size,3] in [0, 255].

  It is near the encoders' mean color, so that empty areas are near zero and drawn things stand out.
  """
  base = (rng.uniform(low, high) + rng.uniform(-tint, tint, 3)).astype(np.float32)
  down, across = rng.uniform(-6, 6, 2)
  axis = np.arange(size, dtype=np.float32) * np.float32(2 / size) - 1
  coarse = Image.fromarray(rng.uniform(-5, 5, (6, 6)).astype(np.float32))
  light = rng.integers(-noise, noise, (size, size), np.int8, endpoint=True).astype(np.float32)
  light += coarse.resize((size, size), Image.Resampling.BILINEAR)
  light += axis[:, None] * np.float32(down) + axis * np.float32(across)
  return light[..., None] + base


class Canvas:
  """A transparent sheet on which things are drawn one after the other.

  All coordinates are in [0, 1], x to the right and y down. `begin` starts a new thing. `box` is the
  tight box of everything drawn since.

  Args:
    size: edge of the image in pixels.
  """

  def __init__(self, size: int) -> None:
    self.size = size
    self.scale = size * FINE
    # X holds the opacity. Pillow averages RGBX channel by channel, unlike RGBA. That is fast and
    # gives premultiplied colors.
    self._sheet = Image.new('RGBX', (self.scale, self.scale), (0, 0, 0, 0))
    self._pens = [ImageDraw.Draw(self._sheet)]
    self._mask = None

  def begin(self) -> None:
    """Starts a new thing."""
    self._mask = Image.new('L', (self.scale, self.scale), 0)
    self._pens = [self._pens[0], ImageDraw.Draw(self._mask)]

  def box(self) -> list[float]:
    """Returns the tight box of everything drawn since `begin`."""
    return [round(edge / self.scale, 4) for edge in self._mask.getbbox()]

  def _pens_and_fills(
    self, color: Color
  ) -> Iterator[tuple[ImageDraw.ImageDraw, tuple[int, ...] | int]]:
    """Yields (pen, fill) for the sheet and for the mask of the current thing."""
    yield self._pens[0], tuple(color) + (255,)
    for pen in self._pens[1:]:
      yield pen, 255

  def polygon(self, points: Sequence[Point], color: Color) -> None:
    """Draws a filled polygon."""
    corners = [(x * self.scale, y * self.scale) for x, y in points]
    for pen, fill in self._pens_and_fills(color):
      pen.polygon(corners, fill=fill)

  def _corners(self, box: Box) -> tuple[int, int, int, int]:
    """The box in canvas pixels, as Pillow draws it."""
    scale, (x1, y1, x2, y2) = self.scale, box
    x1, y1 = round(x1 * scale), round(y1 * scale)
    # Pillow's last row and column are inclusive.
    return x1, y1, max(x1, round(x2 * scale) - 1), max(y1, round(y2 * scale) - 1)

  def rectangle(self, box: Box, color: Color) -> None:
    """Draws a filled rectangle."""
    corners = self._corners(box)
    for pen, fill in self._pens_and_fills(color):
      pen.rectangle(corners, fill=fill)

  def ellipse(self, box: Box, color: Color, ring: float | None = None) -> None:
    """Draws a filled ellipse, or an outline of width `ring`."""
    corners = self._corners(box)
    for pen, fill in self._pens_and_fills(color):
      if ring is None:
        pen.ellipse(corners, fill=fill)
      else:
        pen.ellipse(corners, outline=fill, width=max(1, round(ring * self.scale)))

  def dot(self, center: Point, radius: float, color: Color) -> None:
    """Draws a filled circle."""
    x, y = center
    self.ellipse((x - radius, y - radius, x + radius, y + radius), color)

  def line(self, start: Point, end: Point, width: float, color: Color) -> None:
    """Draws a straight stroke with round ends."""
    radius = width / 2
    (x1, y1), (x2, y2) = start, end
    length = max(math.hypot(x2 - x1, y2 - y1), 1e-6)
    dx, dy = -(y2 - y1) / length * radius, (x2 - x1) / length * radius
    self.polygon(
      [(x1 + dx, y1 + dy), (x2 + dx, y2 + dy), (x2 - dx, y2 - dy), (x1 - dx, y1 - dy)], color
    )
    for tip in (start, end):
      self.dot(tip, radius, color)

  def finish(self, ground: np.ndarray) -> np.ndarray:
    """Lays the sheet on a ground, float32[Y,X,3] in [0, 255]. Returns the image, uint8[Y,X,3]."""
    sheet = np.asarray(self._sheet.reduce(FINE), np.float32)
    image = sheet[..., :3] + ground * (1 - sheet[..., 3:] * np.float32(1 / 255))
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
