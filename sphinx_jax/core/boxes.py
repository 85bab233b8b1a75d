"""Box geometry: pixels to and from the padded square, overlap, and matching for box F1 scores."""

import math
from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]


def is_box(value: Any) -> bool:
  """Whether a JSON value is a list of four finite numbers."""
  return (
    isinstance(value, Sequence)
    and len(value) == 4
    and all(type(number) in (int, float) and math.isfinite(number) for number in value)
  )


def corners(box: Sequence[float]) -> Box:
  """Converts COCO's `(x, y, width, height)` to `(x1, y1, x2, y2)`."""
  x, y, width, height = box
  return x, y, x + width, y + height


def _padding(width: int, height: int) -> tuple[int, int, int]:
  """Returns the side of the padded square, and the padding on its left and its top, in pixels."""
  longer = max(width, height)
  return longer, (longer - width) // 2, (longer - height) // 2


def expand_to_square(box: Sequence[float], width: int, height: int) -> Box:
  """Converts `(x1, y1, x2, y2)` from pixels of an image to pixels of its padded square."""
  _, left, top = _padding(width, height)
  x1, y1, x2, y2 = box
  return x1 + left, y1 + top, x2 + left, y2 + top


def pad_box(box: Sequence[float], width: int, height: int) -> Box:
  """Converts `(x1, y1, x2, y2)` from pixels of an image to [0, 1] on its padded square.

  The side of the square is the longer edge. The padding on the left and top is the floor of half
  the difference (docs/official_sphinx.md, "Preprocessing").
  """
  x1, y1, x2, y2 = expand_to_square(box, width, height)
  longer = max(width, height)
  return x1 / longer, y1 / longer, x2 / longer, y2 / longer


def unpad_box(box: Sequence[float], width: int, height: int) -> Box:
  """Converts `(x1, y1, x2, y2)` from [0, 1] on the padded square to pixels of the image."""
  longer, left, top = _padding(width, height)
  x1, y1, x2, y2 = box
  return x1 * longer - left, y1 * longer - top, x2 * longer - left, y2 * longer - top


def iou(a: Sequence[float], b: Sequence[float]) -> float:
  """Returns the intersection over union of two `(x1, y1, x2, y2)` boxes.

  It is 0 if a box is empty or inverted.
  """
  area_a, area_b = _area(a), _area(b)
  if area_a == 0.0 or area_b == 0.0:
    return 0.0
  shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
  return shared / (area_a + area_b - shared)


def _area(box: Sequence[float]) -> float:
  return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def match(
  predicted: Sequence[Sequence[float]],
  truth: Sequence[Sequence[float]],
  threshold: float = 0.5,
  predicted_labels: Sequence[str] | None = None,
  truth_labels: Sequence[str] | None = None,
) -> int:
  """Returns the number of true positives.

  Predicted and true boxes are matched one to one and greedily, highest IoU first.

  Args:
    predicted: `(x1, y1, x2, y2)` boxes.
    truth: `(x1, y1, x2, y2)` boxes.
    threshold: least IoU of a match.
    predicted_labels: one label per predicted box; only boxes of equal label are matched.
    truth_labels: one label per true box, given together with `predicted_labels`.
  """
  pairs = []
  for p, box in enumerate(predicted):
    for t, other in enumerate(truth):
      if predicted_labels is None or predicted_labels[p] == truth_labels[t]:
        pairs.append((iou(box, other), p, t))
  used_predicted, used_truth = set(), set()
  for overlap, p, t in sorted(pairs, key=lambda pair: -pair[0]):
    if overlap >= threshold and p not in used_predicted and t not in used_truth:
      used_predicted.add(p)
      used_truth.add(t)
  return len(used_truth)
