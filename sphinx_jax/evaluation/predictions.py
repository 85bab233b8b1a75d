"""Predictions of benchmarks as JSON lines with ids: what a killed run goes on with, and what can be scored alone.

In a folder lie `run.json` (which checkpoint and prompts it belongs to), `NAME.jsonl` (finished, in the order of the
questions) and, while a benchmark is under way, `NAME.PROCESS.jsonl`, to which each process adds lines as it has answers.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question

Path = str | os.PathLike


def line(question: Question, answer: str, skipped: str = '') -> dict:
  """What is written of an answer: the question's entry, its id and prompt, and why there is no answer where that is so."""
  return {**question.entry, 'id': question.id, 'prompt': question.prompt, 'answer': answer} | (
    {'skipped': skipped} if skipped else {}
  )


def read(file: Path) -> list[dict]:
  """The lines of a predictions file; a last line that a killed run left unfinished is dropped.

  Raises:
    SphinxError: no file, or a line that is no prediction.
  """
  lines = []
  try:
    texts = epath.Path(file).read_text().split('\n')[:-1]
  except (OSError, UnicodeDecodeError) as error:
    raise errors.make(
      f"predictions '{file}'", str(error), 'a file of JSON lines', 'check the path'
    ) from error
  for number, text in enumerate(texts, 1):
    try:
      found = json.loads(text)
      if not isinstance(found['id'], str) or not isinstance(found['answer'], str):
        raise TypeError
    except (ValueError, KeyError, TypeError):
      raise errors.make(
        f"predictions '{file}', line {number}",
        repr(text[:60]),
        'JSON with a text id and a text answer',
        'mend it, or remove the line to have it asked again',
      ) from None
    lines.append(found)
  return lines


def claim(folder: Path, checkpoint: str, benchmarks: Iterable[Benchmark]) -> epath.Path:
  """Notes what a folder belongs to; benchmarks may come to those that are there. Called by one process.

  Raises:
    SphinxError: it belongs to another checkpoint, or has a benchmark that was answered under other settings.
  """
  folder = epath.Path(folder)
  file = folder / 'run.json'
  found = (
    json.loads(file.read_text()) if file.exists() else {'checkpoint': checkpoint, 'benchmarks': {}}
  )
  mine = {
    'checkpoint': checkpoint,
    'benchmarks': found.get('benchmarks', {})
    | {
      benchmark.name: {'prefix': benchmark.prefix, 'max_new_tokens': benchmark.max_new_tokens}
      for benchmark in benchmarks
    },
  }
  theirs = mine | found | {'benchmarks': mine['benchmarks'] | found.get('benchmarks', {})}
  other = [str(difference) for difference in config_lib.differences(theirs, mine)]
  if other:
    raise errors.make(
      f"evaluation folder '{folder}'",
      f'answers of something else ({"; ".join(other)})',
      'those of this checkpoint and these settings',
      'give another --output, or remove this one',
    )
  folder.mkdir(parents=True, exist_ok=True)
  config_lib.write_whole(file, json.dumps(mine, indent=2))
  return folder


def answered(folder: Path, benchmark: Benchmark) -> dict[str, dict]:
  """Id -> line of all that is answered so far, by however many processes.

  Raises:
    SphinxError: an answer to another question of the same id; a file that cannot be read.
  """
  prompts = {question.id: question.prompt for question in benchmark.questions}
  found = {}
  for file in _files(folder, benchmark.name):
    for entry in read(file):
      if (
        entry['id'] in prompts and entry.get('prompt', prompts[entry['id']]) != prompts[entry['id']]
      ):
        raise errors.make(
          f"predictions '{file}'",
          f'an answer to {entry["prompt"][:80]!r}',
          f'one to {prompts[entry["id"]][:80]!r}',
          'give another --output, or remove the file',
        )
      found.setdefault(entry['id'], entry)
  return found


def merge(folder: Path, benchmark: Benchmark) -> None:
  """Makes the finished file of what the processes wrote. Called by one process, when all are done.

  Raises:
    SphinxError: an answer is missing.
  """
  folder, found = epath.Path(folder), answered(folder, benchmark)
  lines = in_order(benchmark, found)
  asked = {question.id for question in benchmark.questions}
  lines += [
    entry for key, entry in found.items() if key not in asked
  ]  # Of an earlier, higher --limit.
  text = ''.join(json.dumps(entry) + '\n' for entry in lines)
  file = folder / f'{benchmark.name}.jsonl'
  if not file.exists() or file.read_text() != text:
    config_lib.write_whole(file, text)
  for part in _files(folder, benchmark.name)[1:]:
    part.unlink()


def in_order(benchmark: Benchmark, found: Mapping[str, dict]) -> list[dict]:
  """The lines of a benchmark's questions, in their order. Raises SphinxError when some are missing."""
  missing = [question.id for question in benchmark.questions if question.id not in found]
  if missing:
    raise errors.make(
      f"predictions of '{benchmark.name}'",
      f'{len(benchmark.questions) - len(missing)} of {len(benchmark.questions)} answers',
      f'all ({", ".join(missing[:3])} and others are missing)',
      'run the evaluation again to go on with it, or score its first questions with --limit',
    )
  return [found[question.id] for question in benchmark.questions]


def entries(benchmark: Benchmark, file: Path) -> list[dict]:
  """What a protocol scores: the benchmark's own truth with the answers of a file, whoever wrote it; see `in_order`."""
  found = in_order(benchmark, {entry['id']: entry for entry in read(file)})
  return [
    {**question.entry, 'id': question.id, 'answer': entry['answer']}
    | ({'skipped': entry['skipped']} if 'skipped' in entry else {})
    for question, entry in zip(benchmark.questions, found)
  ]


class Writer:
  """Adds lines to a file; what an earlier run left in it stays, except for an unfinished last line.

  Args:
    file: where; made with the first line.
  """

  def __init__(self, file: Path):
    self._file = epath.Path(file)
    self._text = ''
    if self._file.exists():
      self._text = ''.join(json.dumps(entry) + '\n' for entry in read(self._file))
      self._whole()

  def write(self, lines: Sequence[dict]) -> None:
    """Adds lines; handed to the operating system before this returns. Raises SphinxError where they cannot be written."""
    text = ''.join(json.dumps(entry) + '\n' for entry in lines)
    try:
      if config_lib.is_remote(self._file):  # Objects of a bucket cannot grow.
        self._text += text
        self._whole()
      else:
        with self._file.open('a') as file:
          file.write(text)
    except OSError as error:
      raise errors.unwritten(self._file.parent, error) from error

  def _whole(self) -> None:
    config_lib.write_whole(self._file, self._text)


def _files(folder: Path, name: str) -> list[epath.Path]:
  """The finished file first, then those of processes."""
  folder = epath.Path(folder)
  there = list(folder.iterdir()) if folder.is_dir() else []
  pattern = re.compile(re.escape(name) + r'\.\d+\.jsonl')
  whole = [path for path in there if path.name == f'{name}.jsonl']
  return whole + sorted(path for path in there if pattern.fullmatch(path.name))
