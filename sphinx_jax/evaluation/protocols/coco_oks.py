"""Average precision of keypoints (COCO pose) by pycocotools, where each person's box is given in the question.

As with boxes (coco_ap.py) the answers have no confidence. With the boxes given, nobody is overlooked, so the figures
compare with those that top-down methods report for ground-truth boxes. As there, an answer counts for whomever of the picture
it fits, even where somebody else was asked about.
"""

import math
from collections.abc import Sequence

from sphinx_jax.core import coordinates
from sphinx_jax.evaluation.protocols import scoring as base
from sphinx_jax.evaluation.protocols.coco_ap import average_precision
from sphinx_jax.tasks.task import normalize

STATISTICS = ('AP', 'AP50', 'AP75', 'AP medium', 'AP large', 'AR')
# How far annotators differ, as a share of the person's size, by keypoint (cocodataset.org/#keypoints-eval).
SIGMAS = (
  0.026,
  0.025,
  0.025,
  0.035,
  0.035,
  0.079,
  0.079,
  0.072,
  0.072,
  0.062,
  0.062,
  0.107,
  0.107,
  0.087,
  0.087,
  0.089,
  0.089,
)


def keypoints(entry: dict) -> dict[str, tuple[float, float]]:
  """{name: (x, y) in pixels} of an answer such as 'nose [0.50, 0.20], ...'; a name counts once, the first time."""
  longer = max(entry['width'], entry['height'])
  left, top = (longer - entry['width']) // 2, (longer - entry['height']) // 2
  found = {}
  for label, group in coordinates.parse_groups(entry['answer']):
    if len(group[0]) == 2 and normalize(label) in coordinates.KEYPOINTS:
      x, y = group[0]
      found.setdefault(normalize(label), (x * longer - left, y * longer - top))
  return found


def oks(said: dict[str, tuple[float, float]], truth: Sequence[float], area: float) -> float:
  """Object keypoint similarity: the mean over annotated keypoints of exp(-d² / (2 area (2 sigma)²)); a missing one gives 0.

  Args:
    said: {name: (x, y)} in pixels.
    truth: x, y, v of the 17 keypoints in COCO's order; v is 0 where nothing is annotated.
    area: of the person in square pixels.
  """
  terms = []
  for name, sigma, x, y, visible in zip(
    coordinates.KEYPOINTS, SIGMAS, truth[0::3], truth[1::3], truth[2::3], strict=True
  ):
    if visible > 0:
      distance = math.dist(said[name], (x, y)) if name in said else math.inf
      terms.append(math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2)))
  return sum(terms) / len(terms) if terms else 0.0


def each(entries: Sequence[dict], official: bool = False) -> list[float | None]:
  """The OKS of every person asked about; None for one without a keypoint."""
  del official
  people = [entry['person'] for entry in entries]
  return [
    oks(keypoints(entry), person['keypoints'], person['area']) if person['num_keypoints'] else None
    for entry, person in zip(entries, people)
  ]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """COCO's keypoint AP over OKS 0.5 to 0.95 and its usual parts, in [0, 1].

  Args:
    entries: one a person, with 'answer', 'image_id', 'width', 'height', 'person': the official annotation {'bbox', 'area',
      'iscrowd', 'keypoints' (51 numbers), 'num_keypoints'}, and 'others': those people of the picture nobody asks about
      (crowds, no keypoint), on one entry of each picture: they excuse what is found there.
    official: makes no difference, the SPHINX script has no pose.

  Returns:
    {'AP', 'AP50', 'AP75', 'AP medium', 'AP large', 'AR'}; without those of sizes that do not occur.

  Raises:
    SphinxError: no entries.
  """
  del official
  base.some('COCO OKS', entries)
  truth, said = [], []
  for entry in entries:
    place = {'image_id': entry['image_id'], 'category_id': 0}
    truth += [{**person, **place} for person in (entry['person'], *entry['others'])]
    points = keypoints(entry)
    if points:
      said.append({**place, **_prediction(points)})
  return average_precision(
    'keypoints', [entry['image_id'] for entry in entries], ['person'], truth, said, STATISTICS
  )


def _prediction(points):
  xs, ys = zip(*points.values())
  width, height = max(xs) - min(xs), max(ys) - min(ys)
  # pycocotools wants all 17; what is not said lies out of reach, not at (0, 0), which is a place in the picture.
  flat = [
    number for name in coordinates.KEYPOINTS for number in (*points.get(name, (-1e6, -1e6)), 1)
  ]
  return {
    'keypoints': flat,
    'num_keypoints': len(points),
    'bbox': [min(xs), min(ys), width, height],
    'area': width * height,
    'iscrowd': 0,
  }
