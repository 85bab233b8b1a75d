"""REC accuracy at IoU 0.5 (RefCOCO, RefCOCO+, RefCOCOg).

Boxes in answers are on the padded square (other forms: box_forms.py), true boxes are in pixels of
the image.
"""

import re
from collections.abc import Sequence

import numpy as np

from sphinx_jax.core import boxes, errors
from sphinx_jax.evaluation.protocols import box_forms, scoring

THRESHOLD = 0.5


def image_size(question_id: str) -> tuple[int, int]:
  """Returns (width, height) from an official question id like 'height480_width640'.

  Raises:
    SphinxError: the id does not contain both.
  """
  width, height = (re.search(rf'{side}([1-9]\d*)', question_id) for side in ('width', 'height'))
  if width is None or height is None:
    raise errors.make(
      'REC',
      f'question id {question_id!r}',
      "an id like 'height480_width640'",
      'add the width and height of the image',
    )
  return int(width[1]), int(height[1])


def rec_iou(
  answer: str,
  box: Sequence[float],
  width: int,
  height: int,
  official: bool = False,
  form: str = 'square',
) -> float:
  """Returns the IoU of the first box in an answer with the true one, or 0 if there is no box.

  Args:
    answer: text with a box (`box_forms.first_box`).
    box: the true (x1, y1, x2, y2) in pixels of the width x height image.
    width: width of the image before padding, in pixels.
    height: height of the image before padding, in pixels.
    official: parse and compute as the SPHINX script does. Only the first '[...]' of one line counts
      (or, without one, the text up to ']'), anything that float() accepts is a number, and areas
      are signed and float32. The result may then be negative zero, or NaN if the union is 0 or a
      number is not finite.
    form: key of `box_forms.FORMS`, for numbers without a mark of their scale.
  """
  if official:
    target = boxes.expand_to_square(box, width, height)
    return _official_iou(_first_bracket(answer), target, max(width, height))
  predicted = box_forms.first_box(answer, width, height, form)
  return 0.0 if predicted is None else boxes.iou(predicted, boxes.pad_box(box, width, height))


def rec_accuracy(
  answer: str,
  box: Sequence[float],
  width: int,
  height: int,
  official: bool = False,
  form: str = 'square',
) -> float:
  """Returns 1.0 if `rec_iou` of the same arguments is at least 0.5, else 0.0."""
  return float(rec_iou(answer, box, width, height, official, form) >= THRESHOLD)


def unread(entries: Sequence[dict]) -> dict[str, int]:
  """Counts the answers without a box, and those with numbers of an unknown scale."""
  return box_forms.count_unread((entry, *image_size(entry['question_id'])) for entry in entries)


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every entry."""
  scores = []
  for entry in entries:
    width, height = image_size(str(entry['question_id']))
    truth, form = entry['gt_answers'], entry.get('boxes', 'square')
    if not boxes.is_box(truth):
      raise errors.make(
        'REC', f'true box {truth!r:.80}', '[x1, y1, x2, y2] in pixels', 'check the annotations'
      )
    scores.append(rec_accuracy(entry['answer'], truth, width, height, official, form))
  return scores


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'miou0.5': share of hits} over entries.

  Args:
    entries: dicts with 'answer', 'gt_answers' (a box in pixels), the official 'question_id' and
      optionally 'boxes' (`form` of `rec_iou`).
    official: see `rec_iou`.

  Raises:
    SphinxError: there are no entries, an id has no image size, or a truth is no box.
  """
  return scoring.mean('miou0.5', per_example_scores(entries, official))


def _first_bracket(answer: str) -> list[float]:
  brackets = re.findall(r'\[(.*?)\]', answer) or [answer.split(']')[0]]
  try:
    numbers = [float(part) for part in brackets[0].split(',')]
  except ValueError:
    numbers = []
  return numbers if len(numbers) == 4 else [0.0] * 4


def _official_iou(box: Sequence[float], target: Sequence[float], longer: int) -> float:
  # Numbers of any size come in. Infinity and NaN are part of the result.
  with np.errstate(all='ignore'):
    predicted = np.array(box, np.float32) * np.float32(longer)
    truth = np.array(target, np.float32)
    low, high = np.maximum(predicted[:2], truth[:2]), np.minimum(predicted[2:], truth[2:])
    width, height = np.maximum(high - low, 0)
    shared = width * height
    predicted_area, true_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (predicted, truth))
    return float(shared / (predicted_area + true_area - shared))
