"""Average precision of keypoints (COCO pose) by pycocotools. Questions give each person's box.

As with boxes (coco_ap.py), the answers have no confidence. Because the boxes are given, no person
is missed, so the scores compare with those of top-down methods on ground-truth boxes. As in those,
an answer counts for whichever person of the image it fits, even if the question is about another.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.evaluation.protocols import scoring
from sphinx_jax.evaluation.protocols.coco_ap import average_precision
from sphinx_jax.tasks.task import normalize

STATISTICS = ('AP', 'AP50', 'AP75', 'AP medium', 'AP large', 'AR')
# Standard deviation of annotations by keypoint, as a share of the person's scale
# (cocodataset.org/#keypoints-eval).
SIGMAS = (
  *(0.026, 0.025, 0.025, 0.035, 0.035),  # nose, eyes, ears
  *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),  # shoulders, elbows, wrists
  *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),  # hips, knees, ankles
)
_OUT_OF_REACH = (-1e6, -1e6)

Point = tuple[float, float]


def keypoints(entry: dict) -> dict[str, Point]:
  """Parses an answer like 'nose [0.50, 0.20], ...'. The first mention of a name counts.

  Args:
    entry: a dict with 'answer', and 'width' and 'height' of the image in pixels.

  Returns:
    {keypoint name: (x, y) in pixels}.
  """
  result = {}
  for label, group in coordinates.parse_groups(entry['answer']):
    if len(group[0]) == 2 and normalize(label) in coordinates.KEYPOINTS:
      x, y = group[0]
      point = boxes.unpad_box((x, y, x, y), entry['width'], entry['height'])[:2]
      result.setdefault(normalize(label), point)
  return result


def oks(predicted: Mapping[str, Point], truth: Sequence[float], area: float) -> float:
  """Returns the object keypoint similarity, in [0, 1].

  It is the mean over annotated keypoints of exp(-d² / (2 area (2 sigma)²)). A missing keypoint
  contributes 0.

  Args:
    predicted: {keypoint name: (x, y) in pixels}.
    truth: x, y, v of the 17 keypoints in COCO's order; v is 0 for a keypoint without annotation.
    area: area of the person in square pixels.
  """
  terms = []
  for name, sigma, x, y, visible in zip(
    coordinates.KEYPOINTS, SIGMAS, truth[0::3], truth[1::3], truth[2::3], strict=True
  ):
    if visible > 0:
      distance = math.dist(predicted[name], (x, y)) if name in predicted else math.inf
      terms.append(math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2)))
  return sum(terms) / len(terms) if terms else 0.0


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float | None]:
  """Returns the OKS for every question, or None if its person has no keypoints."""
  del official
  scores = []
  for entry in entries:
    person = entry['person']
    if person['num_keypoints']:
      scores.append(oks(keypoints(entry), person['keypoints'], person['area']))
    else:
      scores.append(None)
  return scores


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns COCO's keypoint AP over OKS 0.5 to 0.95 and its usual parts, in [0, 1].

  Args:
    entries: one a person, with 'answer', 'image_id', 'width', 'height', 'person' and 'others'.
      'person' is the published annotation {'bbox', 'area', 'iscrowd', 'keypoints' (51 numbers),
      'num_keypoints'}. 'others' are the people of the image whom no question is about (crowds,
      people without keypoints), on one entry of each image. Predictions on them are not errors.
    official: has no effect, because the SPHINX script does not score pose.

  Returns:
    {'AP', 'AP50', 'AP75', 'AP medium', 'AP large', 'AR'}, without those of sizes that do not occur.

  Raises:
    SphinxError: there are no entries.
  """
  del official
  scoring.require_nonempty('COCO OKS', entries)
  truth, predicted = [], []
  for entry in entries:
    ids = {'image_id': entry['image_id'], 'category_id': 0}
    truth += [{**person, **ids} for person in (entry['person'], *entry['others'])]
    points = keypoints(entry)
    if points:
      predicted.append({**ids, **_prediction(points)})
  image_ids = [entry['image_id'] for entry in entries]
  return average_precision('keypoints', image_ids, ['person'], truth, predicted, STATISTICS)


def _prediction(points: Mapping[str, Point]) -> dict[str, Any]:
  """Returns keypoints in COCO's form of a prediction."""
  xs, ys = zip(*points.values())
  width, height = max(xs) - min(xs), max(ys) - min(ys)
  # pycocotools wants all 17. Missing ones are placed far away: (0, 0) is a point of the image.
  flat = []
  for name in coordinates.KEYPOINTS:
    x, y = points.get(name, _OUT_OF_REACH)
    flat += [x, y, 1]
  return {
    'keypoints': flat,
    'num_keypoints': len(points),
    'bbox': [min(xs), min(ys), width, height],
    'area': width * height,
    'iscrowd': 0,
  }
