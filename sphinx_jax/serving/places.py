"""The boxes and points of an answer as JSON: `response_format={'type': 'json_object'}`."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sphinx_jax.core import coordinates
from sphinx_jax.data import images
from sphinx_jax.evaluation import labels


def to_json(answer: str, frames: Sequence[images.Frame], upright: bool, form: str) -> str:
  """Returns {"text", "unit", "boxes": [{"label", "box"}], "points": [{"label", "point"}], "notes"}.

  Args:
    answer: text of the model.
    frames: those of the images. Coordinates are pixels of the stored image if there is one, as in
      `predict`; otherwise they stay as in the text.
    upright: whether the model sees images as viewers show them.
    form: a key of `box_forms.FORMS`, for numbers without a mark of their scale.
  """
  if len(frames) == 1:
    return _dumps(answer, 'pixels', **_in_pixels(answer, frames[0], upright, form))
  boxes, points = [], []
  for label, groups in coordinates.parse_groups(answer):
    for numbers in groups:
      if len(numbers) == 4:
        boxes.append({'label': label, 'box': numbers})
      else:
        points.append({'label': label, 'point': numbers})
  return _dumps(answer, 'padded_square', boxes=boxes, points=points, notes=[])


def _in_pixels(answer: str, frame: images.Frame, upright: bool, form: str) -> dict[str, list[Any]]:
  counts: Counter[str] = Counter()
  found = {
    key: labels.read(answer, key, frame, upright, form, counts) for key in ('boxes', 'points')
  }
  notes = [note for note in counts if not note.startswith(labels.NOTHING)]
  return {**found, 'notes': notes}


def _dumps(answer: str, unit: str, **found: Any) -> str:
  return json.dumps({'text': answer, 'unit': unit, **found}, ensure_ascii=False)
