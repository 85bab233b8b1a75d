"""Average precision of boxes (COCO detection, DocLayNet layout) by pycocotools, from text answers.

Text has no confidence. Every box has score 1, and boxes count in the order in which they are
written, because pycocotools sorts stably. This is harsher than a ranked list of detections, so the
AP compares only with that of other models that write boxes as text.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sphinx_jax.core import boxes, coordinates, errors
from sphinx_jax.evaluation.protocols import box_forms, scoring
from sphinx_jax.tasks.task import normalize

BOX_STATISTICS = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')


def detections(entry: dict) -> list[tuple[str, boxes.Box]]:
  """Parses the boxes of an answer, in the order in which they are written.

  Args:
    entry: a dict with 'answer', 'width' and 'height' of the image in pixels, and optionally 'boxes'
      (`form` of `box_forms.native`).

  Returns:
    [(normalized class name, (x1, y1, x2, y2) in pixels, clipped to the image), ...].
  """
  width, height = entry['width'], entry['height']
  text = box_forms.native(entry['answer'], width, height, entry.get('boxes', 'square'))
  result = []
  for label, group in coordinates.parse_groups(text):
    for box in (numbers for numbers in group if len(numbers) == 4):
      x1, y1, x2, y2 = boxes.unpad_box(box, width, height)
      clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
      if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
        result.append((normalize(label), clipped))
  return result


def unread(entries: Sequence[dict]) -> dict[str, int]:
  """Counts the answers with numbers of an unknown scale."""
  counts = box_forms.count_unread((entry, entry['width'], entry['height']) for entry in entries)
  return {box_forms.UNKNOWN_SCALE: counts[box_forms.UNKNOWN_SCALE]}


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float | None]:
  """Returns for every image the F1 over (class, box) at IoU 0.5, or None if it has no objects.

  Crowd annotations are left out.
  """
  del official
  scores = []
  for entry in entries:
    predicted = detections(entry)
    truth = [
      (normalize(thing['name']), boxes.corners(thing['bbox']))
      for thing in entry['objects']
      if not thing['iscrowd']
    ]
    if not truth:
      scores.append(None)
      continue
    hits = boxes.match(
      [box for _, box in predicted],
      [box for _, box in truth],
      predicted_labels=[label for label, _ in predicted],
      truth_labels=[label for label, _ in truth],
    )
    scores.append(2 * hits / (len(predicted) + len(truth)))
  return scores


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns COCO's AP over IoU 0.5 to 0.95 and its usual parts, in [0, 1].

  Args:
    entries: one an image, with 'answer', 'image_id', 'width', 'height' and 'objects', which are the
      published annotations {'name', 'bbox' [x, y, width, height], 'area', 'iscrowd'}. A box of a
      class that no image has is ignored, as in the COCO evaluation.
    official: has no effect, because the SPHINX script does not score detection.

  Returns:
    {'AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large'}, without those of sizes that do not
    occur.

  Raises:
    SphinxError: there are no entries, or no objects.
  """
  del official
  scoring.require_nonempty('COCO AP', entries)
  names = sorted({normalize(thing['name']) for entry in entries for thing in entry['objects']})
  if not names:
    raise errors.make(
      'COCO AP', f'{len(entries)} images without objects', 'at least one object', 'add images'
    )
  truth, predicted = [], []
  for entry in entries:
    for thing in entry['objects']:
      truth.append(
        {
          'image_id': entry['image_id'],
          'category_id': names.index(normalize(thing['name'])),
          'bbox': thing['bbox'],
          'area': thing['area'],
          'iscrowd': thing['iscrowd'],
        }
      )
    for name, (x1, y1, x2, y2) in detections(entry):
      if name not in names:
        continue
      predicted.append(
        {
          'image_id': entry['image_id'],
          'category_id': names.index(name),
          'bbox': [x1, y1, x2 - x1, y2 - y1],
          'area': (x2 - x1) * (y2 - y1),
          'iscrowd': 0,
        }
      )
  image_ids = [entry['image_id'] for entry in entries]
  return average_precision('bbox', image_ids, names, truth, predicted, BOX_STATISTICS)


def average_precision(
  kind: str,
  image_ids: Sequence[Any],
  names: Sequence[str],
  truth: Sequence[dict],
  predicted: Sequence[dict],
  statistics: Sequence[str],
) -> dict[str, float]:
  """Runs pycocotools and returns the named statistics, without those that have no truth.

  Args:
    kind: 'bbox' or 'keypoints'.
    image_ids: ids of the images. Repeated ids count once.
    names: names of the categories. The id of a category is its index here.
    truth: annotations in COCO's form, without ids.
    predicted: predictions in the same form, which all get score 1.
    statistics: names of pycocotools' first statistics, in its order.
  """
  scored = [{**prediction, 'score': 1.0} for prediction in predicted]
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress.
    evaluation = COCOeval(
      _coco(image_ids, names, truth),
      _coco(image_ids, names, scored),
      kind,
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  # pycocotools gives -1 for a statistic without truth.
  return {name: float(value) for name, value in zip(statistics, evaluation.stats) if value >= 0}


def _coco(image_ids: Sequence[Any], names: Sequence[str], annotations: Sequence[dict]) -> COCO:
  """Builds a COCO dataset in memory."""
  coco = COCO()
  # Ids start at 1, because pycocotools reads 0 as "not matched".
  coco.dataset = {
    'images': [{'id': image} for image in dict.fromkeys(image_ids)],
    'categories': [{'id': i, 'name': name} for i, name in enumerate(names)],
    'annotations': [{**annotation, 'id': i} for i, annotation in enumerate(annotations, 1)],
  }
  coco.createIndex()
  return coco
