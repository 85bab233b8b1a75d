"""Words for places: where a box is in the picture, and how two boxes lie to each other."""

from __future__ import annotations

_COLUMNS = ((0.36, 'left'), (0.64, ''), (1.01, 'right'))
_ROWS = ((0.36, 'upper'), (0.64, ''), (1.01, 'lower'))
_FINE_X = (
  (0.19, 'far left'),
  (0.31, 'left'),
  (0.44, 'just left of the middle'),
  (0.56, 'in the middle'),
  (0.69, 'just right of the middle'),
  (0.81, 'right'),
  (1.01, 'far right'),
)
_FINE_Y = (
  (0.19, 'at the very top'),
  (0.31, 'high up'),
  (0.44, 'just above the middle'),
  (0.56, 'at middle height'),
  (0.69, 'just below the middle'),
  (0.81, 'low down'),
  (1.01, 'at the very bottom'),
)
_COARSE = {'upper ': 'top', 'lower ': 'bottom', ' left': 'left', ' right': 'right', ' ': 'middle'}


def _pick(bins, value):
  return next(word for edge, word in bins if value < edge)


def center(box):
  return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def coarse(box) -> str:
  """One of nine: "upper left", "top", "upper right", "left", "middle", ... by the centre of the box."""
  x, y = center(box)
  name = f'{_pick(_ROWS, y)} {_pick(_COLUMNS, x)}'
  return _COARSE.get(name, name)


def phrase(box) -> str:
  """The coarse place as it stands in a sentence: "in the upper left", "at the top", "on the right"."""
  place = coarse(box)
  joint = {'top': 'at', 'bottom': 'at', 'left': 'on', 'right': 'on'}.get(place, 'in')
  return f'{joint} the {place}'


def row(box) -> str:
  """Height on the page in five steps, for blocks as wide as the page."""
  y = center(box)[1]
  steps = (
    (0.2, 'at the top'),
    (0.4, 'in the upper half'),
    (0.6, 'in the middle'),
    (0.8, 'in the lower half'),
  )
  return _pick(steps + ((1.01, 'at the bottom'),), y)


def fine(box) -> str:
  """A finer place of seven columns and seven rows: "far left, just below the middle"."""
  x, y = center(box)
  return f'{_pick(_FINE_X, x)} {_pick(_FINE_Y, y)}'


def height(box) -> str:
  """The row of `fine` alone, for blocks as wide as the page."""
  return _pick(_FINE_Y, center(box)[1])


def relation(box, other) -> str:
  """How `box` lies to `other` along the axis that parts their centres most."""
  (x, y), (u, v) = center(box), center(other)
  if abs(x - u) >= abs(y - v):
    return 'left of' if x < u else 'right of'
  return 'above' if y < v else 'below'
