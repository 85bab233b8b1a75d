"""Picks each benchmark's best and worst answers for the report.

The ground truth of a case is formatted like an answer, so that both can be drawn.
"""

import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from PIL import Image

from sphinx_jax.core import boxes, coordinates, files
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.files import read_image
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question
from sphinx_jax.evaluation.protocols import PER_EXAMPLE

_MAX_EDGE = 640  # Pixels of a stored image.


class _Case(NamedTuple):
  """One answered question.

  Attributes:
    question: the question.
    entry: its entry with the answer, see `predictions.entries`.
    score: in [0, 1], or None if a single answer has no score.
  """

  question: Question
  entry: Mapping[str, Any]
  score: float | None


def write(
  folder: os.PathLike,
  benchmark: Benchmark,
  entries: Sequence[dict],
  official: bool = False,
  count: int = 3,
) -> None:
  """Writes folder/cases/NAME.json and the images that it names.

  The file has {'best': cases, 'worst': cases}, or {'first': cases} if single answers have no score,
  for example because the truth is hidden. A case is {'id', 'prompt', 'answer', 'truth': text, with
  boxes as in an answer, 'score': in [0, 1] or null, 'image': path in the folder, or null}. All
  cases of a group are about different images. Of equally good answers the first ones are taken.
  Skipped questions are left out.

  Args:
    folder: folder of the benchmark's predictions.
    benchmark: the benchmark.
    entries: its entries, see `predictions.entries`.
    official: score like the official SPHINX script.
    count: most cases per group.
  """
  if benchmark.hidden:
    scores = [None] * len(entries)
  else:
    scores = PER_EXAMPLE[benchmark.protocol](entries, official=official)
  cases = [
    _Case(question, entry, score)
    for question, entry, score in zip(benchmark.questions, entries, scores)
    if 'skipped' not in entry
  ]
  scored = [case for case in cases if case.score is not None]
  if scored:
    best = _distinct_images(sorted(scored, key=lambda case: -case.score), count)
    best_ids = {case.question.id for case in best}
    others = [case for case in scored if case.question.id not in best_ids]
    worst = _distinct_images(sorted(others, key=lambda case: case.score), count)
    groups = {'best': best, 'worst': worst}
  else:
    groups = {'first': _distinct_images(cases, count)}

  folder = epath.Path(folder)
  (folder / 'cases').mkdir(parents=True, exist_ok=True)
  result = {}
  for group, chosen in groups.items():
    result[group] = [
      _describe(case, folder, f'cases/{benchmark.name}-{group}-{number}.jpg')
      for number, case in enumerate(chosen)
    ]
  files.write_json(folder / 'cases' / f'{benchmark.name}.json', result)


def _distinct_images(cases: Iterable[_Case], count: int) -> list[_Case]:
  """Returns the first `count` cases about different images.

  Questions without an image all count as different.
  """
  chosen: dict[Any, _Case] = {}
  for case in cases:
    chosen.setdefault(case.question.images or ('no image', case.question.id), case)
    if len(chosen) == count:
      break
  return list(chosen.values())


def _describe(case: _Case, folder: epath.Path, image_path: str) -> dict[str, Any]:
  """Returns a case as JSON, and writes its image to folder/image_path if it has one."""
  image = _open_image(case.question)
  width, height = (None, None) if image is None else image.size
  if image is not None:
    image.thumbnail((_MAX_EDGE, _MAX_EDGE))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=90)
    (folder / image_path).write_bytes(buffer.getvalue())
  return {
    'id': case.question.id,
    'prompt': case.question.prompt,
    'answer': case.entry['answer'],
    'truth': format_truth(case.entry, width, height),
    'score': case.score,
    'image': None if image is None else image_path,
  }


def _open_image(question: Question) -> Image.Image | None:
  """Returns the images of a question side by side, or None if they are not on this machine."""
  if not question.images:
    return None
  try:
    decoded = [images.decode(read_image(question.id, image)) for image in question.images]
    return Image.fromarray(images.beside(decoded))
  except BadExample:  # Predictions can be scored on a machine without the images.
    return None


def format_truth(entry: Mapping[str, Any], width: int | None, height: int | None) -> str:
  """Returns the truth of an entry as an answer would state it.

  Args:
    entry: an entry of any protocol.
    width: width of the image in pixels. If it is None, boxes are left in pixels.
    height: height of the image in pixels, or None.
  """
  width, height = entry.get('width', width), entry.get('height', height)
  if 'objects' in entry:
    by_name: dict[str, list[boxes.Box]] = {}
    for thing in entry['objects']:
      box = boxes.pad_box(boxes.corners(thing['bbox']), width, height)
      by_name.setdefault(thing['name'], []).append(box)
    phrases = [f'{name} {coordinates.format_boxes(group)}' for name, group in by_name.items()]
    return ', '.join(phrases)
  if 'person' in entry:
    flat = entry['person']['keypoints']
    points = {
      name: boxes.pad_box((x, y, x, y), width, height)[:2]
      for name, x, y, visible in zip(coordinates.KEYPOINTS, flat[0::3], flat[1::3], flat[2::3])
      if visible
    }
    return coordinates.format_keypoints(points.items())
  return _format_answers(entry.get('gt_answers', ''), width, height)


def _format_answers(answers: Any, width: int | None, height: int | None) -> str:
  """Formats true answers: a text, texts (the most common first), a box or boxes in pixels."""
  if isinstance(answers, str) or not answers:
    return answers or ''
  if isinstance(answers[0], str):
    return ' / '.join(answer for answer, _ in Counter(answers).most_common())
  true_boxes = answers if isinstance(answers[0], Sequence) else [answers]
  if width is None or height is None:
    return str(true_boxes)
  return coordinates.format_boxes([boxes.pad_box(box, width, height) for box in true_boxes])
