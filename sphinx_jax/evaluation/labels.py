"""Boxes and points in the text of answers, in pixels of the image files.

Coordinates of a text are on the image as the model sees it. Here they are in pixels as the file
stores them, whether the model applies an EXIF orientation or not.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.data import images, orientation
from sphinx_jax.evaluation.protocols import box_forms

# What is read in an answer: the key of a line, its key in each entry of the list, and the number of
# coordinates. 'text' reads nothing.
SCHEMAS: dict[str, tuple[str, str, int] | None] = {
  'text': None,
  'boxes': ('boxes', 'box', 4),
  'points': ('points', 'point', 2),
}

# What is counted besides the labels.
NOTHING = 'answers without'
TURNED = 'images with an EXIF orientation, which the model sees as stored'
OUTSIDE = 'outside the image, or with swapped or equal corners, left out'
UNKNOWN_SCALE = 'with numbers above 1 and no mark of their scale, left out (name it by --boxes)'

_LARGEST = 2.0  # A coordinate of an image and its padding is at most 1, but models are inexact.
_SLACK = 0.01  # Two decimals may put a point this far outside, as a share of the longer edge.


def read(
  answer: str, schema: str, frame: images.Frame, upright: bool, form: str, counts: Counter
) -> list[dict[str, Any]]:
  """Returns the labels of an answer about one image.

  Args:
    answer: text of a model.
    schema: a key of SCHEMAS with labels.
    frame: that of the image.
    upright: whether the model sees the image as viewers show it.
    form: a key of `box_forms.FORMS`, for numbers without a mark of their scale.
    counts: gets the numbers of what the user should know: labels that are left out, and the like.

  Returns:
    {'label': text, '' without one, 'box': [x1, y1, x2, y2] or 'point': [x, y]} of each, in pixels
    of the stored image, cut at its edges.
  """
  key, name, size = SCHEMAS[schema]
  if not upright and frame.orientation != 1:
    counts[TURNED] += 1
    frame = frame._replace(orientation=1)
  width, height = orientation.shown_size(frame)
  found = []
  for label, numbers in _groups(answer, size, width, height, form):
    if max(map(abs, numbers)) > _LARGEST:
      counts[f'{key} {UNKNOWN_SCALE}'] += 1
      continue
    place = _box if size == 4 else _point
    pixels = place(numbers, width, height, frame)
    if pixels is None:
      counts[f'{key} {OUTSIDE}'] += 1
    else:
      found.append({'label': label, name: [round(value, 2) for value in pixels]})
  if not found:
    counts[f'{NOTHING} {key}'] += 1
  return found


def _groups(
  answer: str, size: int, width: int, height: int, form: str
) -> list[tuple[str, coordinates.Numbers]]:
  """Returns (label, `size` numbers on the padded square) of every box or point of a text."""
  groups = [
    (label, numbers)
    for label, group in coordinates.parse_groups(box_forms.native(answer, width, height, form))
    for numbers in group
    if len(numbers) == size
  ]
  if not groups and size == 4:  # Four numbers without brackets.
    box = box_forms.first_box(answer, width, height, form)
    return [('', box)] if box else []
  return groups


def _box(
  numbers: Sequence[float], width: int, height: int, frame: images.Frame
) -> tuple[float, ...] | None:
  x1, y1, x2, y2 = boxes.unpad_box(numbers, width, height)
  x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
  return orientation.stored_box((x1, y1, x2, y2), frame) if x1 < x2 and y1 < y2 else None


def _point(
  numbers: Sequence[float], width: int, height: int, frame: images.Frame
) -> tuple[float, ...] | None:
  x, y, _, _ = boxes.unpad_box((*numbers, *numbers), width, height)
  slack = _SLACK * max(width, height)
  if not (-slack <= x <= width + slack and -slack <= y <= height + slack):
    return None
  return orientation.stored_point((min(max(x, 0.0), width), min(max(y, 0.0), height)), frame)
