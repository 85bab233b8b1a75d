"""Scenes of 1 to 3 colored things, plain shapes and small everyday objects, that do not touch."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from sphinx_jax.miniworld.draw import (
  COLORS,
  DARK,
  Box,
  Canvas,
  Color,
  Point,
  jitter,
  lattice,
  shade,
)

SHAPES = ('circle', 'square', 'triangle', 'star')
ICONS = ('cup', 'house', 'tree', 'car')
NAMES = SHAPES + ICONS
# Range of the longer side, as a share of the image's.
SIZES = {'small': (0.21, 0.23), 'big': (0.44, 0.48)}
# Width / height.
ASPECT = {
  'circle': 1.0,
  'square': 1.0,
  'triangle': 1.1,
  'star': 1.05,
  'cup': 1.15,
  'house': 0.95,
  'tree': 0.8,
  'car': 1.7,
}
GAP = 0.02  # Smallest distance of two objects.


def _star(turn: float) -> Iterator[Point]:
  """Corners of a star in a unit cell centered on 0, turned by an angle in radians."""
  for k in range(10):
    radius = 0.5 if k % 2 == 0 else 0.215
    angle = math.pi * k / 5 + turn
    yield radius * math.sin(angle), -radius * math.cos(angle)


def _rotate(points: Sequence[Point], angle: float) -> list[Point]:
  c, s = math.cos(angle), math.sin(angle)
  return [(c * x - s * y, s * x + c * y) for x, y in points]


def _shape(name: str, turn: float) -> list[Point]:
  """Corners of a plain shape in a unit cell centered on 0."""
  if name == 'square':
    return _rotate([(-0.46, -0.46), (0.46, -0.46), (0.46, 0.46), (-0.46, 0.46)], turn)
  if name == 'triangle':
    return _rotate([(0, -0.5), (0.5, 0.5), (-0.5, 0.5)], turn)
  return list(_star(turn))


class _Cell:
  """Draws in the unit cell of one object, x and y from -0.5 to 0.5."""

  def __init__(self, canvas: Canvas, center: Point, width: float, height: float) -> None:
    self._canvas, self._center, self._side = canvas, center, (width, height)

  def _at(self, x: float, y: float) -> Point:
    return self._center[0] + x * self._side[0], self._center[1] + y * self._side[1]

  def polygon(self, points: Sequence[Point], color: Color) -> None:
    self._canvas.polygon([self._at(x, y) for x, y in points], color)

  def rectangle(self, x1: float, y1: float, x2: float, y2: float, color: Color) -> None:
    self._canvas.rectangle(self._at(x1, y1) + self._at(x2, y2), color)

  def ellipse(
    self, x1: float, y1: float, x2: float, y2: float, color: Color, ring: float | None = None
  ) -> None:
    width = None if ring is None else ring * self._side[0]
    self._canvas.ellipse(self._at(x1, y1) + self._at(x2, y2), color, width)


def _cup(cell: _Cell, color: Color) -> None:
  cell.ellipse(0.12, -0.28, 0.5, 0.26, shade(color, 0.75), ring=0.1)
  cell.polygon([(-0.5, -0.42), (0.3, -0.42), (0.18, 0.5), (-0.38, 0.5)], color)
  cell.ellipse(-0.5, -0.5, 0.3, -0.3, shade(color, 0.55))


def _house(cell: _Cell, color: Color) -> None:
  cell.rectangle(-0.42, -0.08, 0.42, 0.5, color)
  cell.polygon([(-0.5, -0.06), (0, -0.5), (0.5, -0.06)], (110, 66, 44))
  cell.rectangle(-0.28, 0.06, -0.06, 0.26, (250, 250, 235))
  cell.rectangle(0.08, 0.12, 0.3, 0.5, DARK)


def _tree(cell: _Cell, color: Color) -> None:
  cell.rectangle(-0.11, 0.1, 0.11, 0.5, (110, 66, 44))
  cell.polygon([(-0.5, 0.24), (0, -0.22), (0.5, 0.24)], shade(color, 0.8))
  cell.polygon([(-0.42, -0.04), (0, -0.5), (0.42, -0.04)], color)


def _car(cell: _Cell, color: Color) -> None:
  cell.polygon([(-0.28, 0.0), (-0.18, -0.5), (0.16, -0.5), (0.3, 0.0)], color)
  cell.polygon([(-0.2, -0.06), (-0.13, -0.36), (-0.03, -0.36), (-0.03, -0.06)], (225, 240, 250))
  cell.polygon([(0.03, -0.06), (0.03, -0.36), (0.12, -0.36), (0.21, -0.06)], (225, 240, 250))
  cell.rectangle(-0.5, -0.06, 0.5, 0.3, color)
  for x in (-0.28, 0.28):
    cell.ellipse(x - 0.13, 0.06, x + 0.13, 0.5, DARK)


_PAINT = {'cup': _cup, 'house': _house, 'tree': _tree, 'car': _car}


def paint(
  canvas: Canvas,
  name: str,
  color: Color,
  center: Point,
  width: float,
  height: float,
  turn: float = 0.0,
) -> list[float]:
  """Draws one object.

  Args:
    canvas: the canvas.
    name: one of NAMES.
    color: its main color.
    center: its center.
    width: its width, as a share of the image.
    height: its height, as a share of the image.
    turn: angle in radians, for shapes.

  Returns:
    Its tight box.
  """
  canvas.begin()
  cell = _Cell(canvas, center, width, height)
  edge = shade(color, 0.62)
  if name in _PAINT:
    _PAINT[name](cell, color)
  elif name == 'circle':
    cell.ellipse(-0.5, -0.5, 0.5, 0.5, edge)
    cell.ellipse(-0.44, -0.44, 0.44, 0.44, color)
  else:
    corners = _shape(name, turn)
    cell.polygon(corners, edge)
    drop = 0.05 if name == 'triangle' else 0.0
    cell.polygon([(x * 0.84, y * 0.84 + drop) for x, y in corners], color)
  return canvas.box()


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
  """Whether a box keeps GAP from all taken boxes."""
  return all(
    box[2] + GAP < other[0]
    or other[2] + GAP < box[0]
    or box[3] + GAP < other[1]
    or other[3] + GAP < box[1]
    for other in taken
  )


def _place(rng: np.random.Generator, sides: Sequence[tuple[float, float]]) -> list[Point] | None:
  """Returns centers for cells of (width, height) that keep GAP, or None if they did not fit."""
  taken, centers = [], []
  for width, height in sides:
    for _ in range(40):
      x, y = (lattice(rng, side) + side / 2 for side in (width, height))
      box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
      if _is_free(box, taken):
        taken.append(box)
        centers.append((x, y))
        break
    else:
      return None
  return centers


def _sides(rng: np.random.Generator, name: str, size: str, scale: float) -> tuple[float, float]:
  """Returns (width, height) of an object."""
  longer = rng.uniform(*SIZES[size]) * scale
  aspect = ASPECT[name] * rng.uniform(0.98, 1.02)
  return (longer, longer / aspect) if aspect >= 1 else (longer * aspect, longer)


def draw(rng: np.random.Generator, size: int, scale: float = 1.0) -> tuple[Canvas, list[dict]]:
  """Draws one scene; returns (canvas, [{'name', 'color', 'size', 'box'}])."""
  count = int(rng.choice(3, p=(0.3, 0.5, 0.2))) + 1
  kinds = [
    divmod(int(k), len(NAMES)) for k in rng.choice(len(COLORS) * len(NAMES), count, replace=False)
  ]
  names = [NAMES[n] for _, n in kinds]
  while True:
    sizes = [('small', 'big')[int(rng.random() < 0.45)] for _ in names]
    sides = [_sides(rng, name, kind, scale) for name, kind in zip(names, sizes)]
    centers = _place(rng, sides)
    if centers is not None:
      break
  canvas, objects = Canvas(size), []
  for (c, _), name, kind, center, side in zip(kinds, names, sizes, centers, sides):
    color = list(COLORS)[c]
    turn = math.radians(rng.uniform(-3, 3)) if name in SHAPES else 0.0
    box = paint(canvas, name, jitter(COLORS[color], rng), center, *side, turn)
    objects.append({'name': name, 'color': color, 'size': kind, 'box': box})
  return canvas, objects


def redraw(
  things: Sequence[dict], rng: np.random.Generator, size: int
) -> tuple[Canvas, list[dict]]:
  """Draws things of given names, colors and boxes; returns (canvas, things with their new boxes).

  A thing whose name has another shape than its box is drawn inside the box.
  """
  canvas, drawn = Canvas(size), []
  for thing in things:
    name, (x1, y1, x2, y2) = thing['name'], thing['box']
    width = min(x2 - x1, (y2 - y1) * ASPECT[name])
    side = np.array([width, min(y2 - y1, width / ASPECT[name])])
    # Some shapes do not fill their cell.
    corners = np.array(_shape(name, 0.0) if name in SHAPES[1:] else [(-0.5, -0.5), (0.5, 0.5)])
    low, high = corners.min(0), corners.max(0)
    cell = side / (high - low)
    middle = np.array([x1 + x2, y1 + y2]) / 2 - (low + high) / 2 * cell
    box = paint(canvas, name, jitter(COLORS[thing['color']], rng), tuple(middle), *cell)
    drawn.append({**thing, 'box': box})
  return canvas, drawn
