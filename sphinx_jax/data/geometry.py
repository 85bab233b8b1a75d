"""From what a dataset says in pixels of its picture to what tasks read: [0, 1] on the padded square, mirrored or not.

An annotation is a dict of lists (data/tasks/base.py names them). Boxes and keypoints follow padding and mirroring, and so
do the words left and right; what lies outside the picture is cut at its edge, and dropped when nothing of it is left.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from sphinx_jax.core import boxes, coordinates

BOXED = ('objects', 'words', 'blocks', 'people')
_SIDE = re.compile(r'\b(left|right)\b', re.IGNORECASE)
# Where each keypoint of COCO's order goes in a mirror.
_MIRRORED = tuple(coordinates.KEYPOINTS.index(
    re.sub(_SIDE, lambda side: {'left': 'right', 'right': 'left'}[side[0]], name)) for name in coordinates.KEYPOINTS)


def on_square(annotation: dict, width: int, height: int, mirrored: bool = False,
              drop: Callable[[str], None] = lambda reason: None) -> dict:
  """The annotation as tasks read it; the one given is left as it is.

  Args:
    annotation: boxes [x1, y1, x2, y2] and keypoints [x, y, v] in pixels of the picture.
    width, height: of the picture, in pixels.
    mirrored: whether left and right change places, in coordinates and in texts.
    drop: told the reason of every box and keypoint that is left out.

  Returns:
    The same lists with coordinates in [0, 1]. A thing whose box is outside the picture or empty is gone from its list, so
    'relations', which count in 'objects', are renumbered and go with it; a keypoint outside becomes [0, 0, 0].
  """
  def place(box: Sequence[float]) -> list[float] | None:
    return _place(box, width, height, mirrored, drop)

  result = _swap_sides(annotation) if mirrored else dict(annotation)
  for name in BOXED:
    if name in annotation:
      placed = [(thing, place(thing['box'])) for thing in result[name]]
      result[name] = [{**thing, 'box': box} for thing, box in placed if box]
      if name == 'objects' and 'relations' in result:
        result['relations'] = _renumber(result['relations'], [box is not None for _, box in placed])
  for person in result.get('people', ()):
    person['keypoints'] = _keypoints(person['keypoints'], width, height, mirrored, drop)
  if 'phrases' in result:
    result['phrases'] = [{**piece, 'boxes': [box for box in map(place, piece.get('boxes', ())) if box]}
                         for piece in result['phrases']]
  return result


def scaled(annotation: dict, x: float, y: float) -> dict:
  """The annotation of a picture that is x times as wide and y times as high."""
  def grown(box: Sequence[float]) -> list[float]:
    return [number * (x, y)[i % 2] for i, number in enumerate(box)]

  result = dict(annotation)
  for name in BOXED:
    if name in annotation:
      result[name] = [{**thing, 'box': grown(thing['box'])} for thing in annotation[name]]
  if 'people' in result:
    result['people'] = [{**person, 'keypoints': [[px * x, py * y, visible] for px, py, visible in person['keypoints']]}
                        for person in result['people']]
  if 'phrases' in annotation:
    result['phrases'] = [{**piece, 'boxes': [grown(box) for box in piece.get('boxes', ())]} for piece in annotation['phrases']]
  return result


def _place(box: Sequence[float], width: int, height: int, mirrored: bool, drop: Callable[[str], None]) -> list[float] | None:
  try:
    x1, y1, x2, y2 = (float(number) for number in box)
  except (TypeError, ValueError):
    return drop('box that is not four numbers')
  if not all(map(math.isfinite, (x1, y1, x2, y2))):
    return drop('box that is not four numbers')
  x1, x2 = max(x1, 0.0), min(x2, float(width))
  y1, y2 = max(y1, 0.0), min(y2, float(height))
  if x1 >= x2 or y1 >= y2:
    return drop('box outside the image or empty')
  if mirrored:
    x1, x2 = width - x2, width - x1
  return list(boxes.pad_box((x1, y1, x2, y2), width, height))


def _keypoints(points: Sequence[Sequence[float]], width: int, height: int, mirrored: bool,
               drop: Callable[[str], None]) -> list[list[float]]:
  order = _MIRRORED if mirrored and len(points) == len(_MIRRORED) else range(len(points))
  result = []
  for x, y, visible in (points[i] for i in order):
    if visible > 0 and not (0 <= x <= width and 0 <= y <= height):
      drop('keypoint outside the image')
      visible = 0
    x = width - x if mirrored else x
    result.append([*boxes.pad_box((x, y, x, y), width, height)[:2], visible] if visible > 0 else [0.0, 0.0, 0])
  return result


def _renumber(relations: Sequence[dict], kept: Sequence[bool]) -> list[dict]:
  number = {old: new for new, old in enumerate(i for i, keep in enumerate(kept) if keep)}
  return [{**relation, 'subject': number[relation['subject']], 'object': number[relation['object']]}
          for relation in relations if relation['subject'] in number and relation['object'] in number]


def _swap_sides(value: Any) -> Any:
  """Left for right and right for left, in the case they are written in, in every text of a value of JSON."""
  if isinstance(value, str):
    return _SIDE.sub(_other_side, value)
  if isinstance(value, dict):
    return {key: _swap_sides(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_swap_sides(item) for item in value]
  return value


def _other_side(side: re.Match) -> str:
  other = 'right' if side[0].lower() == 'left' else 'left'
  return other.upper() if side[0].isupper() else other.capitalize() if side[0][0].isupper() else other
