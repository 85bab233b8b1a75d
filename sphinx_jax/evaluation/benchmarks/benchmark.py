"""What a benchmark is: questions with the whole prompt, and what its protocol needs to score the answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.core.tables import Table
from sphinx_jax.evaluation.protocols import PROTOCOLS

# Each reads one layout: (name, root, prompt, **the row's own settings) -> [Question, ...].
READERS = Table(
  'benchmark reader',
  {
    'annotations': 'sphinx_jax.evaluation.benchmarks.annotations:read',
    'pope': 'sphinx_jax.evaluation.benchmarks.pope:read',
    'mmbench': 'sphinx_jax.evaluation.benchmarks.mmbench:read',
    'seed_bench': 'sphinx_jax.evaluation.benchmarks.seed:read',
    'coco_objects': 'sphinx_jax.evaluation.benchmarks.coco:read_objects',
    'coco_people': 'sphinx_jax.evaluation.benchmarks.coco:read_people',
    'coco_captions': 'sphinx_jax.evaluation.benchmarks.coco:read_captions',
    'karpathy': 'sphinx_jax.evaluation.benchmarks.coco:read_karpathy',
    'flickr30k': 'sphinx_jax.evaluation.benchmarks.flickr30k:read',
    'vqav2_questions': 'sphinx_jax.evaluation.benchmarks.hidden:read_vqav2',
    'vizwiz_questions': 'sphinx_jax.evaluation.benchmarks.hidden:read_vizwiz',
    'docvqa_questions': 'sphinx_jax.evaluation.benchmarks.hidden:read_docvqa',
  },
)

_COMMON = (
  'reader',
  'prompt',
  'prefix',
  'max_new_tokens',
  'protocol',
  'metric',
  'hidden',
  'published',
  'variant',
  'note',
)


@dataclasses.dataclass(frozen=True)
class Question:
  """One question about one picture.

  Attributes:
    id: unique in its benchmark.
    image: the file, its bytes, or None.
    prompt: the whole question, with the benchmark's wording around it.
    entry: plain JSON, what the protocol needs ('gt_answers', 'question_id', 'image_path', ...).
    history: earlier turns (question, answer) of the dialog in which this question is asked.
    answer_length: rough length of the answer, if known. Questions with answers of similar length
      are decoded together, which only affects the speed.
  """

  id: str
  image: Path | bytes | None
  prompt: str
  entry: dict[str, Any]
  history: Sequence[tuple[str, str]] = ()
  answer_length: int | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A benchmark, opened.

  Attributes:
    name: its key in configs/benchmarks.py.
    questions: in the order of the official file.
    prefix: how the answer begins, given to the model ('' or such as ' The answer is').
    max_new_tokens: longest answer.
    protocol: name in `PROTOCOLS`.
    hidden: there is no truth to score against, only a submission file (evaluation/submissions.py).
    settings: the whole row of the table.
  """

  name: str
  questions: Sequence[Question]
  prefix: str
  max_new_tokens: int
  protocol: str
  hidden: bool
  settings: Mapping[str, Any]


def open_benchmark(name: str, settings: Mapping[str, Any], root: Path | str) -> Benchmark:
  """Reads the questions of a benchmark; no picture is touched.

  Args:
    name: of the benchmark.
    settings: its row of configs/benchmarks.py.
    root: the folder that the row's paths are relative to.

  Raises:
    SphinxError: an unknown reader or protocol; a file that is missing (it is named) or not the official one; no question.
  """
  settings = dict(settings)
  if settings['protocol'] not in PROTOCOLS:
    raise errors.unknown(f"protocol of benchmark '{name}'", settings['protocol'], PROTOCOLS)
  own = {key: value for key, value in settings.items() if key not in _COMMON}
  questions = READERS[settings['reader']](name, Path(root), settings['prompt'], **own)
  if not questions:
    raise errors.make(f"benchmark '{name}'", 'no question', 'at least one', 'check its files')
  seen = set()
  for question in questions:
    if question.id in seen:
      raise errors.make(
        f"benchmark '{name}'",
        f"two questions with the id '{question.id}'",
        'one',
        'check its files',
      )
    seen.add(question.id)
  return Benchmark(
    name,
    questions,
    settings.get('prefix', ''),
    settings['max_new_tokens'],
    settings['protocol'],
    settings.get('hidden', False),
    settings,
  )


def field(name: str, row: Any, key: str, path: Path) -> Any:
  """row[key]. Raises SphinxError naming file and key when the row is not as in the official file."""
  if not isinstance(row, dict) or key not in row:
    raise errors.make(
      f"benchmark '{name}'",
      f"a row of {str(path)!r} without '{key}': {str(row)[:200]}",
      'the official file',
      'download it again',
    )
  return row[key]


def rows(name: str, value: Any, key: str, path: Path) -> list[Any]:
  """value[key], a list. Raises SphinxError naming the file when it is none."""
  found = field(name, value, key, path)
  if not isinstance(found, list):
    raise errors.make(
      f"benchmark '{name}'",
      f"a {type(found).__name__} under '{key}' in {str(path)!r}",
      'a list',
      'check that it is the official file',
    )
  return found
