"""Average precision of boxes (COCO detection, DocLayNet layout) by pycocotools, from answers that are text.

Text has no confidence: every box scores 1, and what is written first counts first, as pycocotools sorts stably. This is
harsher than the ranked lists of detectors, so such an AP is comparable only with that of other models that write.
"""

import contextlib
import io
from collections.abc import Sequence

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sphinx_jax.core import boxes, coordinates, errors
from sphinx_jax.evaluation.protocols import scoring as base
from sphinx_jax.tasks.task import normalize

BOX_STATISTICS = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')


def detections(entry: dict) -> list[tuple[str, boxes.Box]]:
  """[(class in normal form, (x1, y1, x2, y2) in pixels), ...] of an answer, clipped to the picture, in the order written."""
  width, height = entry['width'], entry['height']
  found = []
  for label, group in coordinates.parse_groups(entry['answer']):
    for box in (numbers for numbers in group if len(numbers) == 4):
      x1, y1, x2, y2 = boxes.unpad_box(box, width, height)
      clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
      if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
        found.append((normalize(label), clipped))
  return found


def each(entries: Sequence[dict], official: bool = False) -> list[float | None]:
  """F1 over (class, box) at IoU 0.5 for every picture, crowds left out; None for a picture with nothing in it."""
  del official
  scores = []
  for entry in entries:
    said = detections(entry)
    truth = [
      (normalize(thing['name']), boxes.corners(thing['bbox']))
      for thing in entry['objects']
      if not thing['iscrowd']
    ]
    hits = boxes.match(
      [box for _, box in said],
      [box for _, box in truth],
      predicted_labels=[name for name, _ in said],
      truth_labels=[name for name, _ in truth],
    )
    scores.append(2 * hits / (len(said) + len(truth)) if truth else None)
  return scores


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """COCO's AP over IoU 0.5 to 0.95 and its usual parts, in [0, 1].

  Args:
    entries: one a picture, with 'answer', 'image_id', 'width', 'height' and 'objects': the official annotations
      {'name', 'bbox' [x, y, width, height], 'area', 'iscrowd'}. A box of a class that no picture has cannot count,
      neither for nor against, as in the official evaluation.
    official: makes no difference, the SPHINX script has no detection.

  Returns:
    {'AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large'}; without those of sizes that do not occur.

  Raises:
    SphinxError: no entries, or no object.
  """
  del official
  base.some('COCO AP', entries)
  names = sorted({normalize(thing['name']) for entry in entries for thing in entry['objects']})
  if not names:
    raise errors.make(
      'COCO AP',
      f'{len(entries)} pictures with nothing in them',
      'at least one object',
      'score more pictures',
    )
  truth, said = [], []
  for entry in entries:
    truth += [
      {
        'image_id': entry['image_id'],
        'category_id': names.index(normalize(thing['name'])),
        'bbox': thing['bbox'],
        'area': thing['area'],
        'iscrowd': thing['iscrowd'],
      }
      for thing in entry['objects']
    ]
    said += [
      {
        'image_id': entry['image_id'],
        'category_id': names.index(name),
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'area': (x2 - x1) * (y2 - y1),
        'iscrowd': 0,
      }
      for name, (x1, y1, x2, y2) in detections(entry)
      if name in names
    ]
  return average_precision(
    'bbox', [entry['image_id'] for entry in entries], names, truth, said, BOX_STATISTICS
  )


def average_precision(
  kind: str,
  images: Sequence,
  names: Sequence[str],
  truth: Sequence[dict],
  said: Sequence[dict],
  statistics: Sequence[str],
) -> dict[str, float]:
  """The named ones of pycocotools' statistics, in their order; those that it has no truth for are left out.

  Args:
    kind: 'bbox' or 'keypoints'.
    images: ids.
    names: of the categories, whose ids are their places here.
    truth: annotations as in the official file; ids are given here.
    said: the same of the answers; their score is 1.
    statistics: the names of the first ones; '' for one that is not wanted.
  """
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does.
    evaluation = COCOeval(
      _coco(images, names, truth),
      _coco(images, names, [{**box, 'score': 1.0} for box in said]),
      kind,
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return {
    name: float(value) for name, value in zip(statistics, evaluation.stats) if name and value >= 0
  }


def _coco(images, names, annotations):
  coco = COCO()
  # Ids start at 1: pycocotools takes 0 for "not matched".
  coco.dataset = {
    'images': [{'id': image} for image in dict.fromkeys(images)],
    'categories': [{'id': i, 'name': name} for i, name in enumerate(names)],
    'annotations': [{**annotation, 'id': i} for i, annotation in enumerate(annotations, 1)],
  }
  coco.createIndex()
  return coco
