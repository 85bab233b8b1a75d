"""Words for the place of a box in the image, and for the relation of two boxes."""

from collections.abc import Sequence

from sphinx_jax.miniworld.draw import Box, Point

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


def _pick(bins: Sequence[tuple[float, str]], value: float) -> str:
  return next(word for edge, word in bins if value < edge)


def center(box: Box) -> Point:
  """The center of a box."""
  return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def coarse(box: Box) -> str:
  """One of nine places: "upper left", "top", "upper right", "left", "middle", ..."""
  x, y = center(box)
  name = f'{_pick(_ROWS, y)} {_pick(_COLUMNS, x)}'
  return _COARSE.get(name, name)


def phrase(box: Box) -> str:
  """The coarse place in a sentence: "in the upper left", "at the top", "on the right"."""
  place = coarse(box)
  joint = {'top': 'at', 'bottom': 'at', 'left': 'on', 'right': 'on'}.get(place, 'in')
  return f'{joint} the {place}'


def row(box: Box) -> str:
  """The height on the page in five steps, for blocks as wide as the page."""
  y = center(box)[1]
  steps = (
    (0.2, 'at the top'),
    (0.4, 'in the upper half'),
    (0.6, 'in the middle'),
    (0.8, 'in the lower half'),
  )
  return _pick(steps + ((1.01, 'at the bottom'),), y)


def fine(box: Box) -> str:
  """A finer place, of seven columns and seven rows: "far left just below the middle"."""
  x, y = center(box)
  return f'{_pick(_FINE_X, x)} {_pick(_FINE_Y, y)}'


def height(box: Box) -> str:
  """The row of `fine` alone, for blocks as wide as the page."""
  return _pick(_FINE_Y, center(box)[1])


def relation(box: Box, other: Box) -> str:
  """The relation of `box` to `other`, along the axis in which their centers differ most."""
  (x, y), (u, v) = center(box), center(other)
  if abs(x - u) >= abs(y - v):
    return 'left of' if x < u else 'right of'
  return 'above' if y < v else 'below'
