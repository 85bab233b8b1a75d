"""Moves annotations from pixels of an image to [0, 1] on its padded square, mirrored or not.

An annotation is a dict of lists (tasks/task.py names them). Boxes and keypoints follow padding and
mirroring, and so do the words left and right. Boxes are cut at the edge of the image, and dropped
if nothing is left of them.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from sphinx_jax.core import boxes, coordinates

BOXED = ('objects', 'words', 'blocks', 'people')
# Keys of an annotation whose texts describe the image. Ids, files and wordings do not change.
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
  """Exchanges left and right, and keeps the case."""
  other = 'right' if side[0].lower() == 'left' else 'left'
  if side[0].isupper():
    return other.upper()
  return other.capitalize() if side[0][0].isupper() else other


# Index of each keypoint's counterpart in a mirror image, in COCO's order.
_MIRRORED = tuple(
  coordinates.KEYPOINTS.index(_SIDE.sub(_other_side, name)) for name in coordinates.KEYPOINTS
)


def has_coordinates(annotation: dict) -> bool:
  """Whether an annotation has something for `on_square` to place."""
  return any(name in annotation for name in (*BOXED, 'phrases'))


def on_square(
  annotation: dict,
  width: int,
  height: int,
  mirrored: bool = False,
  drop: Callable[[str], None] = lambda reason: None,
) -> dict:
  """Returns the annotation as tasks read it. The argument does not change.

  Args:
    annotation: boxes [x1, y1, x2, y2] and keypoints [x, y, v] in pixels of the image.
    width: width of the image in pixels.
    height: height of the image in pixels.
    mirrored: exchange left and right, in coordinates and in texts. The image is mirrored before
      padding.
    drop: called with the reason of every dropped box and keypoint.

  Returns:
    The same lists with coordinates in [0, 1]. A thing with an empty box or one outside the image is
    removed from its list, and its class is added to 'partial'. 'relations' that refer to a removed
    object are removed, and the others are renumbered. A keypoint outside the image becomes
    [0, 0, 0].
  """

  def place(box: Sequence[float]) -> list[float] | None:
    return _place(box, width, height, mirrored, drop)

  result = _swap_sides(annotation) if mirrored else dict(annotation)
  for name in BOXED:
    if name in annotation:
      placed = [(thing, place(thing.get('box'))) for thing in result[name]]
      result[name] = [{**thing, 'box': box} for thing, box in placed if box]
      dropped = {thing.get('name') or thing.get('label') for thing, box in placed if not box}
      dropped.discard(None)
      if dropped:
        result['partial'] = sorted({*result.get('partial', ()), *dropped})
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
  """Returns the annotation of an image that is x times as wide and y times as high."""

  def scale(box: Sequence[float]) -> Sequence[float]:
    return _multiply(box, (x, y, x, y))

  result = dict(annotation)
  for name in BOXED:
    if name in annotation:
      result[name] = [{**thing, 'box': scale(thing.get('box'))} for thing in annotation[name]]
  for person in result.get('people', ()):
    person['keypoints'] = [_multiply(point, (x, y, 1)) for point in person.get('keypoints') or ()]
  if 'phrases' in annotation:
    result['phrases'] = [
      {**piece, 'boxes': [scale(box) for box in piece.get('boxes', ())]}
      for piece in annotation['phrases']
    ]
  return result


def _multiply(numbers: Sequence[float], factors: Sequence[float]) -> Sequence[float]:
  try:
    return [number * factor for number, factor in zip(numbers, factors, strict=True)]
  except (TypeError, ValueError):
    return numbers  # `on_square` drops it and reports the reason.


def _numbers(values: Any, count: int) -> list[float] | None:
  """Returns `values` as `count` finite numbers, or None if they are not."""
  try:
    numbers = [float(value) for value in values]
  except (TypeError, ValueError, OverflowError):
    return None
  return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _place(
  box: Any, width: int, height: int, mirrored: bool, drop: Callable[[str], None]
) -> list[float] | None:
  """Returns a box in [0, 1] on the square, or None for one that is dropped."""
  numbers = _numbers(box, 4)
  if numbers is None:
    drop('box that is not four numbers')
    return None
  x1, x2 = max(numbers[0], 0.0), min(numbers[2], float(width))
  y1, y2 = max(numbers[1], 0.0), min(numbers[3], float(height))
  if x1 >= x2 or y1 >= y2:
    drop('box outside the image or empty')
    return None
  if mirrored:
    x1, x2 = width - x2, width - x1
  return list(boxes.pad_box((x1, y1, x2, y2), width, height))


def _keypoints(
  points: Any, width: int, height: int, mirrored: bool, drop: Callable[[str], None]
) -> list[list[float]]:
  placed = [_keypoint(point, width, height, mirrored, drop) for point in points or ()]
  if mirrored and len(placed) == len(_MIRRORED):
    return [placed[i] for i in _MIRRORED]
  return placed


def _keypoint(
  point: Any, width: int, height: int, mirrored: bool, drop: Callable[[str], None]
) -> list[float]:
  numbers = _numbers(point, 3)
  if numbers is None:
    drop('keypoint that is not three numbers')
    return [0.0, 0.0, 0]
  x, y, visible = numbers
  if visible <= 0:
    return [0.0, 0.0, 0]
  if not (0 <= x <= width and 0 <= y <= height):
    drop('keypoint outside the image')
    return [0.0, 0.0, 0]
  if mirrored:
    x = width - x
  return [*boxes.pad_box((x, y, x, y), width, height)[:2], visible]


def _renumber(relations: Sequence[dict], kept: Sequence[bool]) -> list[dict]:
  """Returns the relations between kept objects, with the numbers that these have now."""
  old_numbers = [old for old, keep in enumerate(kept) if keep]
  new_numbers = {old: new for new, old in enumerate(old_numbers)}
  renumbered = []
  for relation in relations:
    subject, other = relation['subject'], relation['object']
    if subject in new_numbers and other in new_numbers:
      numbers = {'subject': new_numbers[subject], 'object': new_numbers[other]}
      renumbered.append({**relation, **numbers})
  return renumbered


def _swap_sides(value: Any, key: str = '') -> Any:
  """Returns a copy in which left and right are exchanged in all texts under a key of _TEXTS."""
  if isinstance(value, str):
    return _SIDE.sub(_other_side, value) if key in _TEXTS else value
  if isinstance(value, dict):
    return {name: _swap_sides(item, name) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_swap_sides(item, key) for item in value]
  return value
