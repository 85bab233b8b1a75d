"""From what a dataset says in pixels of its picture to what tasks read: [0, 1] on the padded square, mirrored or not.

An annotation is a dict of lists (tasks/task.py names them). Boxes and keypoints follow padding and mirroring, and so
do the words left and right; what lies outside the picture is cut at its edge, and dropped when nothing of it is left.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from sphinx_jax.core import boxes, coordinates

BOXED = ('objects', 'words', 'blocks', 'people')
# The keys of an annotation whose texts speak of the picture; ids, files and wordings are left alone.
_TEXTS = frozenset(
  (
    'caption',
    'captions',
    'question',
    'answer',
    'answers',
    'choices',
    'context',
    'name',
    'expressions',
    'predicate',
    'text',
    'classes',
    'absent',
    'partial',
  )
)
_SIDE = re.compile(r'\b(left|right)(?=most|hand|side|wards?|\b)', re.IGNORECASE)


def _other_side(side: re.Match) -> str:
  """Left for right and right for left, in the case they are written in."""
  other = 'right' if side[0].lower() == 'left' else 'left'
  return (
    other.upper() if side[0].isupper() else other.capitalize() if side[0][0].isupper() else other
  )


# Where each keypoint of COCO's order goes in a mirror.
_MIRRORED = tuple(
  coordinates.KEYPOINTS.index(_SIDE.sub(_other_side, name)) for name in coordinates.KEYPOINTS
)


def on_square(
  annotation: dict,
  width: int,
  height: int,
  mirrored: bool = False,
  drop: Callable[[str], None] = lambda reason: None,
) -> dict:
  """The annotation as tasks read it; the one given is left as it is.

  Args:
    annotation: boxes [x1, y1, x2, y2] and keypoints [x, y, v] in pixels of the picture.
    width, height: of the picture, in pixels.
    mirrored: whether left and right change places, in coordinates and in texts; the picture is mirrored before padding.
    drop: told the reason of every box and keypoint that is left out.

  Returns:
    The same lists with coordinates in [0, 1]. A thing whose box is outside the picture or empty is gone from its list, so
    its class is one of 'partial' now, and 'relations', which count in 'objects', are renumbered and go with it. A keypoint
    outside becomes [0, 0, 0].
  """

  def place(box: Sequence[float]) -> list[float] | None:
    return _place(box, width, height, mirrored, drop)

  result = _swap_sides(annotation) if mirrored else dict(annotation)
  for name in BOXED:
    if name in annotation:
      placed = [(thing, place(thing.get('box'))) for thing in result[name]]
      result[name] = [{**thing, 'box': box} for thing, box in placed if box]
      lost = {thing.get('name') or thing.get('label') for thing, box in placed if not box} - {None}
      if lost:
        result['partial'] = sorted({*result.get('partial', ()), *lost})
      if name == 'objects' and 'relations' in result:
        result['relations'] = _renumber(result['relations'], [box is not None for _, box in placed])
  for person in result.get('people', ()):
    person['keypoints'] = _keypoints(person.get('keypoints'), width, height, mirrored, drop)
  if 'phrases' in result:
    result['phrases'] = [
      {**piece, 'boxes': [box for box in map(place, piece.get('boxes', ())) if box]}
      for piece in result['phrases']
    ]
  return result


def scaled(annotation: dict, x: float, y: float) -> dict:
  """The annotation of a picture that is x times as wide and y times as high."""

  def grown(box: Sequence[float]) -> Sequence[float]:
    return _times(box, (x, y, x, y))

  result = dict(annotation)
  for name in BOXED:
    if name in annotation:
      result[name] = [{**thing, 'box': grown(thing.get('box'))} for thing in annotation[name]]
  for person in result.get('people', ()):
    person['keypoints'] = [_times(point, (x, y, 1)) for point in person.get('keypoints') or ()]
  if 'phrases' in annotation:
    result['phrases'] = [
      {**piece, 'boxes': [grown(box) for box in piece.get('boxes', ())]}
      for piece in annotation['phrases']
    ]
  return result


def _times(numbers: Sequence[float], factors: Sequence[float]) -> Sequence[float]:
  try:
    return [number * factor for number, factor in zip(numbers, factors, strict=True)]
  except (TypeError, ValueError):
    return numbers  # `on_square` drops it and says why.


def _numbers(values: Any, count: int) -> list[float] | None:
  """That many finite numbers, or None."""
  try:
    numbers = [float(value) for value in values]
  except (TypeError, ValueError, OverflowError):
    return None
  return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _place(
  box: Any, width: int, height: int, mirrored: bool, drop: Callable[[str], None]
) -> list[float] | None:
  numbers = _numbers(box, 4)
  if numbers is None:
    return drop('box that is not four numbers')
  x1, x2 = max(numbers[0], 0.0), min(numbers[2], float(width))
  y1, y2 = max(numbers[1], 0.0), min(numbers[3], float(height))
  if x1 >= x2 or y1 >= y2:
    return drop('box outside the image or empty')
  if mirrored:
    x1, x2 = width - x2, width - x1
  return list(boxes.pad_box((x1, y1, x2, y2), width, height))


def _keypoints(
  points: Any, width: int, height: int, mirrored: bool, drop: Callable[[str], None]
) -> list[list[float]]:
  points = [_keypoint(point, width, height, mirrored, drop) for point in points or ()]
  return [points[i] for i in _MIRRORED] if mirrored and len(points) == len(_MIRRORED) else points


def _keypoint(
  point: Any, width: int, height: int, mirrored: bool, drop: Callable[[str], None]
) -> list[float]:
  numbers = _numbers(point, 3)
  if numbers is None:
    drop('keypoint that is not three numbers')
  x, y, visible = numbers or (0.0, 0.0, 0.0)
  if visible > 0 and not (0 <= x <= width and 0 <= y <= height):
    drop('keypoint outside the image')
    visible = 0
  if visible <= 0:
    return [0.0, 0.0, 0]
  x = width - x if mirrored else x
  return [*boxes.pad_box((x, y, x, y), width, height)[:2], visible]


def _renumber(relations: Sequence[dict], kept: Sequence[bool]) -> list[dict]:
  number = {old: new for new, old in enumerate(i for i, keep in enumerate(kept) if keep)}
  return [
    {**relation, 'subject': number[relation['subject']], 'object': number[relation['object']]}
    for relation in relations
    if relation['subject'] in number and relation['object'] in number
  ]


def _swap_sides(value: Any, key: str = '') -> Any:
  """A copy in which every text that stands under one of _TEXTS has its sides exchanged."""
  if isinstance(value, str):
    return _SIDE.sub(_other_side, value) if key in _TEXTS else value
  if isinstance(value, dict):
    return {name: _swap_sides(item, name) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_swap_sides(item, key) for item in value]
  return value
