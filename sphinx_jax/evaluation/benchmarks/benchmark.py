"""A benchmark: questions with whole prompts, and what its protocol needs to score the answers."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors, files as core_files
from sphinx_jax.core.tables import Table
from sphinx_jax.core.text import is_unicode
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import files
from sphinx_jax.datasets.fields import as_id, as_text
from sphinx_jax.evaluation.protocols import PROTOCOLS, box_forms

# Each reads one file format: (who, root, prompt, **settings) -> list of Question, where
#   who       is the benchmark as messages show it,
#   root      the directory that all paths are relative to,
#   prompt    the instruction, with '{}' for what is asked, if anything is; for questions with
#             choices also {question}, {hint} and {choices}, see tasks.questions.ask, and
#   settings  the keys of the benchmark's row that are not in COMMON_KEYS: file, the path of the
#             published file; images, the directory of its images; those that the docstring names.
# A file that is missing or not the published one raises SphinxError.
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

# Keys of a row of configs/benchmarks.py that are not settings of its reader.
COMMON_KEYS = (
  'reader',
  'prompt',
  'styles',
  'prefix',
  'max_new_tokens',
  'protocol',
  'metric',
  'boxes',
  'hidden',
  'published',
  'variant',
  'note',
)


@dataclasses.dataclass(frozen=True)
class Question:
  """One question about an image, several or none.

  Attributes:
    id: unique in its benchmark.
    images: the file or the bytes of each.
    prompt: the question with the benchmark's instruction.
    entry: JSON values that the protocol needs ('gt_answers', 'question_id', 'image_path', ...).
    history: earlier turns (question, answer) of the dialog in which this question is asked.
    answer_length: rough length of the answer, if known. Questions with answers of similar length
      are decoded together, which only affects the speed.
    marks: what `<image>` in the prompt and the history is, see `record.MARKS`.
    location: where it was read, for messages; '' is the id.
    fault: why it cannot be asked, if that is known before its images are read.
  """

  id: str
  images: tuple[Path | bytes, ...]
  prompt: str
  entry: dict[str, Any]
  history: Sequence[tuple[str, str]] = ()
  answer_length: int | None = None
  marks: str = 'text'
  location: str = ''
  fault: BadExample | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A benchmark, opened.

  Attributes:
    name: key in configs/benchmarks.py.
    questions: in the order of the published file.
    prefix: the beginning of every answer, which the model is given ('', ' The answer is').
    max_new_tokens: length of the longest answer.
    protocol: name in `PROTOCOLS`.
    hidden: the answers are hidden, so there is only a submission file (evaluation/submissions.py).
    settings: the whole row of the table.
    files: path in the root -> size and hash of the published files.
  """

  name: str
  questions: Sequence[Question]
  prefix: str
  max_new_tokens: int
  protocol: str
  hidden: bool
  settings: Mapping[str, Any]
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def ids(self) -> list[str]:
    """Ids of the questions."""
    return [question.id for question in self.questions]

  @property
  def prompts(self) -> dict[str, str]:
    """Id -> prompt of the questions."""
    return {question.id: question.prompt for question in self.questions}


def open_benchmark(
  name: str, settings: Mapping[str, Any], root: Path | str, style: str = ''
) -> Benchmark:
  """Reads the questions of a benchmark. No image is read.

  Args:
    name: name of the benchmark.
    settings: its row of configs/benchmarks.py.
    root: directory that the row's paths are relative to.
    style: dialog template of the model that is asked. The row's `styles` may have settings for it.

  Raises:
    SphinxError: unknown reader, protocol or form of boxes; a file that is missing or not the
      published one (the message names it); no question; repeated ids.
  """
  settings = {**settings, **settings.get('styles', {}).get(style, {})}
  who = f"benchmark '{name}'"
  if settings['protocol'] not in PROTOCOLS:
    raise errors.unknown(f'protocol of {who}', settings['protocol'], PROTOCOLS)
  form = settings.get('boxes', 'square')
  if form not in box_forms.FORMS:
    raise errors.unknown(f'form of the boxes of {who}', form, box_forms.FORMS)
  own = {key: value for key, value in settings.items() if key not in COMMON_KEYS}
  with files.opened_files() as opened:
    questions = READERS[settings['reader']](who, Path(root), settings['prompt'], **own)
  if not questions:
    raise errors.make(who, 'no question', 'at least one', 'check its files')
  ids = set()
  for question in questions:
    if question.id in ids:
      raise errors.make(who, f"two questions with the id '{question.id}'", 'one', 'check its files')
    ids.add(question.id)
  if form != 'square':
    questions = [
      dataclasses.replace(question, entry=question.entry | {'boxes': form})
      for question in questions
    ]
  return Benchmark(
    name=name,
    questions=questions,
    prefix=settings.get('prefix', ''),
    max_new_tokens=settings['max_new_tokens'],
    protocol=settings['protocol'],
    hidden=settings.get('hidden', False),
    settings=settings,
    files={os.path.relpath(path, root): value for path, value in opened.items()},
  )


@dataclasses.dataclass(frozen=True)
class PublishedFile:
  """A file of a benchmark, read with errors that name both.

  Unlike datasets/fields.py, a malformed row is not skipped: a score over fewer questions than the
  benchmark has would not be comparable.

  Attributes:
    who: the benchmark, for messages.
    path: the file.
  """

  who: str
  path: Path

  @classmethod
  def find(cls, who: str, root: Path, choices: str | Sequence[str]) -> 'PublishedFile':
    """Returns the file of a path under root, or the first of several paths that exists.

    Raises:
      SphinxError: none exists; the message lists all of them.
    """
    choices = (choices,) if isinstance(choices, str) else choices
    return cls(who, files.find(who, root, *choices))

  def rows(self, key: str = '') -> list[Any]:
    """Returns the list under `key` in the JSON file. Without a key, the file is JSON or JSON lines.

    Raises:
      SphinxError: the file cannot be read, is not JSON, or holds no such list.
    """
    if key:
      return files.read_json_list(self.who, self.path, key)
    items = core_files.read_items(self.path, who=self.who)
    if len(items) == 1 and items[0][0].startswith('line'):  # A lone object is no JSON lines.
      raise errors.make(
        self.who,
        f'a {type(items[0][1]).__name__} in {str(self.path)!r}',
        'a list',
        'check that it is the published file',
      )
    return [value for _, value in items]

  def required(self, row: Any, key: str) -> Any:
    """Returns row[key].

    Args:
      row: a JSON value of the file.
      key: the key.

    Raises:
      SphinxError: the row is no object, or has no such key.
    """
    if not isinstance(row, dict) or key not in row:
      raise errors.make(
        self.who,
        f"a row of {str(self.path)!r} without '{key}': {str(row)[:200]}",
        'the published file',
        'download it again',
      )
    return row[key]

  def text(self, row: Any, key: str) -> str:
    """Returns row[key] as text. Raises SphinxError like `required`, or if it is no text."""
    value = self.required(row, key)
    text = as_text(value)
    if text is None or not is_unicode(text):
      raise errors.make(
        self.who,
        f'{value!r:.80} under {key!r} in {str(self.path)!r}',
        'a text or a number',
        'check that it is the published file',
      )
    return text

  def number(self, row: Any, key: str) -> int:
    """Returns row[key], a whole number. Raises SphinxError like `required`, or if it is none."""
    value = self.required(row, key)
    try:
      return int(str(as_id(value)))
    except ValueError as error:
      raise errors.make(
        self.who,
        f'{value!r:.80} under {key!r} in {str(self.path)!r}',
        'a whole number',
        'check that it is the published file',
      ) from error

  def required_list(self, row: Any, key: str) -> list[Any]:
    """Returns row[key], a list. Raises SphinxError like `required`, or if it is no list."""
    value = self.required(row, key)
    if not isinstance(value, list):
      raise errors.make(
        self.who,
        f"a {type(value).__name__} under '{key}' in {str(self.path)!r}",
        'a list',
        'check that it is the published file',
      )
    return value
