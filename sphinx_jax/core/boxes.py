"""Box geometry: pixels to and from the padded square, overlap, and the matching behind every box F1."""

from collections.abc import Sequence

Box = tuple[float, float, float, float]


def corners(box: Sequence[float]) -> Box:
  """COCO's `(x, y, width, height)` -> `(x1, y1, x2, y2)`."""
  x, y, width, height = box
  return x, y, x + width, y + height


def _padding(width: int, height: int) -> tuple[int, int, int]:
  longer = max(width, height)
  return longer, (longer - width) // 2, (longer - height) // 2


def expand_to_square(box: Sequence[float], width: int, height: int) -> Box:
  """Pixels `(x1, y1, x2, y2)` of a width x height image -> pixels of its padded square."""
  _, left, top = _padding(width, height)
  x1, y1, x2, y2 = box
  return x1 + left, y1 + top, x2 + left, y2 + top


def pad_box(box: Sequence[float], width: int, height: int) -> Box:
  """Pixels `(x1, y1, x2, y2)` of a width x height image -> [0, 1] on its padded square.

  The square's side is the longer edge and the left/top padding is the floor of half the difference (FACTS "Preprocessing").
  """
  x1, y1, x2, y2 = expand_to_square(box, width, height)
  longer = max(width, height)
  return x1 / longer, y1 / longer, x2 / longer, y2 / longer


def unpad_box(box: Sequence[float], width: int, height: int) -> Box:
  """The inverse of `pad_box`: [0, 1] on the padded square -> pixels of the width x height image."""
  longer, left, top = _padding(width, height)
  x1, y1, x2, y2 = box
  return x1 * longer - left, y1 * longer - top, x2 * longer - left, y2 * longer - top


def iou(a: Sequence[float], b: Sequence[float]) -> float:
  """Intersection over union of two `(x1, y1, x2, y2)` boxes; an empty or inverted box overlaps nothing."""
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
  """True positives: predicted boxes matched one to one with truth at IoU >= threshold, best overlap first.

  With labels (both or neither), only boxes of equal label may match.
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
