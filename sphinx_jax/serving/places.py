"""The boxes and points of an answer as JSON: `response_format={'type': 'json_object'}`."""

import json
from collections.abc import Sequence
from typing import Any

from sphinx_jax.core import boxes, coordinates


def to_json(answer: str, sizes: Sequence[tuple[int, int]]) -> str:
  """Returns {"text", "unit", "boxes": [{"label", "box"}], "points": [{"label", "point"}]}.

  Args:
    answer: text of the model.
    sizes: width and height of every image. Coordinates are pixels of the image if there is one;
      otherwise they stay as in the text, in [0, 1] on the padded square.
  """
  size = sizes[0] if len(sizes) == 1 else None
  found: dict[str, list[dict[str, Any]]] = {'boxes': [], 'points': []}
  for label, groups in coordinates.parse_groups(answer):
    for numbers in groups:
      corners = (*numbers, *numbers)[:4]  # Of a point, twice the same corner.
      if size is not None:
        corners = [round(number, 2) for number in boxes.unpad_box(corners, *size)]
      if len(numbers) == 4:
        found['boxes'].append({'label': label, 'box': list(corners)})
      else:
        found['points'].append({'label': label, 'point': list(corners[:2])})
  unit = 'padded_square' if size is None else 'pixels'
  return json.dumps({'text': answer, 'unit': unit, **found}, ensure_ascii=False)
