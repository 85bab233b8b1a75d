"""REC accuracy at IoU 0.5 (RefCOCO, RefCOCO+, RefCOCOg): answers on the padded square, truth in pixels of the picture."""

import re
from collections.abc import Sequence

import numpy as np

from sphinx_jax.core import boxes, coordinates, errors
from sphinx_jax.evaluation.protocols import scoring as base

THRESHOLD = 0.5


def image_size(question_id: str) -> tuple[int, int]:
  """(width, height) from an official question id such as 'height480_width640'. Raises SphinxError without them."""
  sizes = [re.search(rf'{side}(\d+)', question_id) for side in ('width', 'height')]
  if None in sizes:
    raise errors.make(
      'REC',
      f'question id {question_id!r}',
      "one like 'height480_width640'",
      'give the width and height of the picture',
    )
  return int(sizes[0][1]), int(sizes[1][1])


def rec_iou(
  answer: str, box: Sequence[float], width: int, height: int, official: bool = False
) -> float:
  """IoU of the first box in an answer with the true one; 0 without a box.

  Args:
    answer: text with '[x1, y1, x2, y2]' in [0, 1] on the padded square.
    box: the true (x1, y1, x2, y2) in pixels of the width x height picture.
    width: of the picture before padding, in pixels.
    height: likewise.
    official: reads the answer and computes as the SPHINX script does: only the first '[...]' of one line counts (or,
      without one, the text up to ']'), anything float() takes is a number, areas are signed and float32. It may
      then be negative zero, or NaN where the union is 0 or a number is not finite.
  """
  if official:
    return _official_iou(
      _first_bracket(answer), boxes.expand_to_square(box, width, height), max(width, height)
    )
  groups = coordinates.parse_groups(answer) or coordinates.parse_groups(f'[{answer.strip("[] ")}]')
  found = [numbers for _, group in groups for numbers in group if len(numbers) == 4]
  return boxes.iou(found[0], boxes.pad_box(box, width, height)) if found else 0.0


def rec_accuracy(
  answer: str, box: Sequence[float], width: int, height: int, official: bool = False
) -> float:
  """1.0 where `rec_iou` of the same arguments is at least 0.5, else 0.0."""
  return float(rec_iou(answer, box, width, height, official) >= THRESHOLD)


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """1.0 or 0.0 for every entry."""
  return [
    rec_accuracy(e['answer'], e['gt_answers'], *image_size(e['question_id']), official)
    for e in entries
  ]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'miou0.5': share of hits} of entries with 'answer', 'gt_answers' (a box in pixels) and the official 'question_id'."""
  return base.mean('miou0.5', each(entries, official))


def _first_bracket(answer):
  brackets = re.findall(r'\[(.*?)\]', answer) or [answer.split(']')[0]]
  try:
    numbers = [float(part) for part in brackets[0].split(',')]
  except ValueError:
    numbers = []
  return numbers if len(numbers) == 4 else [0.0] * 4


def _official_iou(box, target, longer):
  with np.errstate(
    all='ignore'
  ):  # Numbers of any size come in; infinity and NaN are part of the result.
    box, target = np.array(box, np.float32) * np.float32(longer), np.array(target, np.float32)
    sides = np.maximum(np.minimum(box[2:], target[2:]) - np.maximum(box[:2], target[:2]), 0)
    shared = sides[0] * sides[1]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, target)]
    return float(shared / (areas[0] + areas[1] - shared))
