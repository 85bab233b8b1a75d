"""The best and the worst answers of a benchmark, with what was true in the form that answers have, to be drawn."""

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from PIL import Image

from sphinx_jax.core import boxes, config as config_lib, coordinates
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import family as base
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question
from sphinx_jax.evaluation.protocols import PER_EXAMPLE

_EDGE = 640  # Pixels at most of a kept picture.


def write(
  folder: os.PathLike,
  benchmark: Benchmark,
  entries: Sequence[dict],
  official: bool = False,
  count: int = 3,
) -> None:
  """Writes folder/cases/NAME.json and the pictures it names.

  They are answers of different pictures, the first ones where many are equally good, none of questions that could not be
  asked. In the file are {'best', 'worst': cases}, or {'first': cases} where single answers have no score (hidden truth).
  A case is {'id', 'prompt', 'answer', 'truth': with boxes as in an answer, or '', 'score': in [0, 1] or null, 'image': path
  in the folder, or null where there is no picture}.

  Args:
    folder: of the benchmark's predictions.
    benchmark: whose questions these are.
    entries: as of `predictions.entries`.
    official: as in the protocols.
    count: most cases of each kind.
  """
  scored = (
    [None] * len(entries)
    if benchmark.hidden
    else PER_EXAMPLE[benchmark.protocol](entries, official=official)
  )
  usable = [i for i, entry in enumerate(entries) if 'skipped' not in entry]
  known = [i for i in usable if scored[i] is not None]
  if known:
    best = _different(benchmark, sorted(known, key=lambda i: -scored[i]), count)
    worst = _different(
      benchmark, sorted(set(known) - set(best), key=lambda i: (scored[i], i)), count
    )
    groups = {'best': best, 'worst': worst}
  else:
    groups = {'first': _different(benchmark, usable, count)}
  folder = epath.Path(folder)
  (folder / 'cases').mkdir(parents=True, exist_ok=True)
  found = {
    group: [
      _case(
        folder,
        f'cases/{benchmark.name}-{group}-{n}.jpg',
        benchmark.questions[i],
        entries[i],
        scored[i],
      )
      for n, i in enumerate(indices)
    ]
    for group, indices in groups.items()
  }
  config_lib.write_whole(folder / 'cases' / f'{benchmark.name}.json', json.dumps(found, indent=2))


def _different(benchmark: Benchmark, order: Iterable[int], count: int) -> list[int]:
  """The first of an order, of as many pictures."""
  found = {}
  for i in order:
    found.setdefault(benchmark.questions[i].image or i, i)
    if len(found) == count:
      break
  return list(found.values())


def _case(
  folder: epath.Path, name: str, question: Question, entry: dict, score: float | None
) -> dict[str, Any]:
  picture = _picture(question)
  width, height = (None, None) if picture is None else picture.size
  if picture is not None:
    picture.thumbnail((_EDGE, _EDGE))
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=90)
    (folder / name).write_bytes(buffer.getvalue())
  return {
    'id': question.id,
    'prompt': question.prompt,
    'answer': entry['answer'],
    'truth': truth(entry, width, height),
    'score': score,
    'image': None if picture is None else name,
  }


def _picture(question: Question) -> Image.Image | None:
  if question.image is None:
    return None
  try:
    return Image.fromarray(images.decode(base.read_image(question.id, question.image)))
  except BadExample:  # Predictions can be scored where the pictures are not.
    return None


def truth(entry: dict, width: int | None, height: int | None) -> str:
  """What an entry says is true, as an answer would say it.

  Args:
    entry: of any protocol.
    width, height: of the picture in pixels, or None: boxes are then left in pixels.
  """
  width, height = entry.get('width', width), entry.get('height', height)
  if 'objects' in entry:
    things = {thing['name']: [] for thing in entry['objects']}
    for thing in entry['objects']:
      things[thing['name']].append(boxes.pad_box(boxes.corners(thing['bbox']), width, height))
    return ', '.join(f'{name} {coordinates.format_boxes(group)}' for name, group in things.items())
  if 'person' in entry:
    flat = entry['person']['keypoints']
    points = {
      name: boxes.pad_box((x, y, x, y), width, height)[:2]
      for name, x, y, seen in zip(coordinates.KEYPOINTS, flat[0::3], flat[1::3], flat[2::3])
      if seen
    }
    return coordinates.format_keypoints(points.items())
  return _answers(entry.get('gt_answers', ''), width, height)


def _answers(answers: Any, width: int | None, height: int | None) -> str:
  """Texts, the commonest first, or boxes in pixels."""
  if isinstance(answers, str) or not answers:
    return answers or ''
  if isinstance(answers[0], str):
    return ' / '.join(text for text, _ in Counter(answers).most_common())
  found = answers if isinstance(answers[0], Sequence) else [answers]
  if width is None or height is None:
    return str(found)
  return coordinates.format_boxes([boxes.pad_box(box, width, height) for box in found])
