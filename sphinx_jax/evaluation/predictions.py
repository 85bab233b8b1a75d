"""Predictions on disk: JSON lines with ids, from which a killed run resumes.

The folder of a run has `run.json` (its checkpoint and settings), `NAME.jsonl` (the finished file of
a benchmark, in the order of its questions) and, while a benchmark is being answered,
`NAME.PROCESS.jsonl`, to which each process appends its answers. A finished file can be scored
alone, whoever wrote it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from sphinx_jax.core import config as config_lib, errors, files, paths
from sphinx_jax.core.progress import log
from sphinx_jax.datasets.fields import as_id, as_text
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question

Path = str | os.PathLike


def line(question: Question, answer: str, skipped: str = '') -> dict[str, Any]:
  """Returns the prediction line of a question.

  Args:
    question: its entry, id and prompt are part of the line.
    answer: the model's answer, '' if the question was skipped.
    skipped: the reason if the question could not be asked.
  """
  result = {**question.entry, 'id': question.id, 'prompt': question.prompt, 'answer': answer}
  if skipped:
    result['skipped'] = skipped
  return result


def read(file: Path) -> list[dict[str, Any]]:
  """Returns the lines of a predictions file, without a last line that a killed run cut off.

  Files of other programs may be a JSON list, packed, or without a last newline. Ids and answers in
  them may be numbers.

  Raises:
    SphinxError: the file is missing, or a line is not a prediction.
  """
  entries = []
  for place, entry in files.read_items(file, drop_partial=True):
    values = entry if isinstance(entry, dict) else {}
    key, answer = values.get('id'), as_text(values.get('answer'))
    key = key if isinstance(key, str) else as_id(key)
    if key is None or answer is None:
      raise errors.make(
        f"predictions '{file}', {place}",
        repr(json.dumps(entry)[:60]),
        'JSON with an id, and a text or a number as answer',
        'correct the line, or remove it to have the question answered again',
      )
    entries.append({**entry, 'id': str(key), 'answer': answer})
  return entries


def claim(
  folder: Path, checkpoint: str, benchmarks: Iterable[Benchmark], weights: Any = None
) -> epath.Path:
  """Claims a folder for the answers of a checkpoint. Later calls may add benchmarks.

  One process calls it.

  Args:
    folder: the folder of the run, made if absent.
    checkpoint: text that identifies the checkpoint.
    benchmarks: the benchmarks to be answered.
    weights: what changes if other weights take the checkpoint's place, as JSON.

  Raises:
    SphinxError: the folder belongs to another checkpoint, or has a benchmark that was answered with
      other settings or from other files.
  """
  settings = {
    benchmark.name: {
      'prefix': benchmark.prefix,
      'max_new_tokens': benchmark.max_new_tokens,
      'files': dict(benchmark.files),
    }
    for benchmark in benchmarks
  }
  run = {'checkpoint': checkpoint, 'weights': weights, 'benchmarks': settings}
  return claim_folder(folder, run, extensible='benchmarks')


def claim_folder(folder: Path, run: Mapping[str, Any], extensible: str | None = None) -> epath.Path:
  """Writes run.json into a folder, or checks that the folder belongs to this run.

  Args:
    folder: the folder, made if absent.
    run: plain JSON that identifies the run. What an older run.json lacks is not compared.
    extensible: a key of `run` whose value is a dict to which later runs may add entries. Only
      entries that both have are compared.

  Returns:
    The folder.

  Raises:
    SphinxError: the folder belongs to another run. The message names the keys that differ.
  """
  folder = epath.Path(folder)
  file = folder / 'run.json'
  stored = files.read_json(file) if file.exists() else None
  run = dict(run)
  if stored is not None:
    stored = run | stored
    if extensible is not None:
      entries = run[extensible]
      stored_entries = {
        name: entries.get(name, {}) | entry for name, entry in stored[extensible].items()
      }
      stored[extensible] = entries | stored_entries
      run[extensible] = stored_entries | entries
    different = [str(difference) for difference in config_lib.differences(stored, run)]
    if different:
      raise errors.make(
        f"evaluation folder '{folder}'",
        f'answers of another run ({"; ".join(different)})',
        'answers of this checkpoint with these settings',
        'use another folder, or remove this one',
      )
  paths.make_folder(folder)
  files.write_json(file, run)
  return folder


def answered(folder: Path, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
  """Returns {id: line} of all answers so far, from the files of any number of processes.

  The answer to a question that was skipped before replaces the line that skipped it.

  Raises:
    SphinxError: a file has an answer to another question with the same id, or cannot be read.
  """
  prompts = {question.id: question.prompt for question in benchmark.questions}
  result = {}
  for file in [_finished_file(folder, benchmark.name), *_part_files(folder, benchmark.name)]:
    if not file.exists():
      continue
    for entry in read(file):
      prompt = prompts.get(entry['id'])
      if prompt is not None and entry.get('prompt', prompt) != prompt:
        raise errors.make(
          f"predictions '{file}'",
          f'an answer to {entry["prompt"][:80]!r}',
          f'one to {prompt[:80]!r}',
          'use another folder, or remove the file',
        )
      earlier = result.setdefault(entry['id'], entry)
      if 'skipped' in earlier:
        result[entry['id']] = entry
  return result


def merge(folder: Path, benchmark: Benchmark) -> None:
  """Writes the finished file from the files of all processes. One process calls it, at the end.

  Raises:
    SphinxError: an answer is missing.
  """
  entries = answered(folder, benchmark)
  lines = in_order(benchmark, entries)
  ids = {question.id for question in benchmark.questions}
  # An earlier run with a higher --limit answered more questions. They are kept.
  lines += [entry for key, entry in entries.items() if key not in ids]
  finish(folder, benchmark.name, lines)


def finish(folder: Path, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes the finished file of a benchmark, atomically, and removes the files of processes."""
  text = _to_jsonl(lines)
  file = _finished_file(folder, name)
  if not file.exists() or file.read_text() != text:
    files.write_atomic(file, text)
  for part in _part_files(folder, name):
    part.unlink()


def in_order(benchmark: Benchmark, entries: Mapping[str, dict]) -> list[dict[str, Any]]:
  """Returns the lines of a benchmark's questions, in the order of the questions.

  Args:
    benchmark: the benchmark.
    entries: {id: line}.

  Raises:
    SphinxError: some answers are missing.
  """
  missing = [question.id for question in benchmark.questions if question.id not in entries]
  if missing:
    total = len(benchmark.questions)
    raise errors.make(
      f"predictions of '{benchmark.name}'",
      f'{total - len(missing)} of {total} answers',
      f'all (missing: {", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""})',
      'run the evaluation again to resume it, or score the first questions with --limit',
    )
  return [entries[question.id] for question in benchmark.questions]


def entries(benchmark: Benchmark, file: Path) -> list[dict[str, Any]]:
  """Returns what a protocol scores: the benchmark's own truth with the answers of a file.

  Answers to other questions are left out with a warning.

  Raises:
    SphinxError: as for `read` and `in_order`; several answers have one id; or a line has the image
      or the question id of another question, because it belongs to another benchmark.
  """
  predictions = read(file)
  counts = Counter(entry['id'] for entry in predictions)
  repeated = [key for key, count in counts.items() if count > 1]
  if repeated:
    raise errors.make(
      f"predictions '{file}'",
      f"{counts[repeated[0]]} answers with the id '{repeated[0]}'",
      'one answer to a question',
      'remove the others',
    )
  others = set(counts) - {question.id for question in benchmark.questions}
  if others:
    log.warning(
      "predictions '%s': %d answers belong to no question of '%s' and are left out, as '%s'",
      *(file, len(others), benchmark.name, min(others)),
    )
  lines = in_order(benchmark, {entry['id']: entry for entry in predictions})
  result = []
  for question, predicted in zip(benchmark.questions, lines):
    for key in ('image_path', 'question_id'):
      got, expected = (as_id(entry.get(key)) for entry in (predicted, question.entry))
      names = {os.path.basename(str(value)) for value in (got, expected) if value is not None}
      if len(names) > 1:
        raise errors.make(
          f"predictions '{file}', id '{question.id}'",
          f'{key} {got!r:.80}',
          f"{expected!r:.80} of '{benchmark.name}'",
          'take the answers to this benchmark',
        )
    entry = {**question.entry, 'id': question.id, 'answer': predicted['answer']}
    if 'skipped' in predicted:
      entry['skipped'] = predicted['skipped']
    result.append(entry)
  return result


class Writer:
  """Appends lines to a predictions file.

  The lines of an earlier run stay, except for a last line that was cut off, and for questions that
  were skipped, which are asked again.

  Args:
    file: the file, made with the first line.
  """

  def __init__(self, file: Path) -> None:
    self._file = epath.Path(file)
    self._text = ''
    if self._file.exists():
      self._text = _to_jsonl(entry for entry in read(self._file) if 'skipped' not in entry)
      files.write_atomic(self._file, self._text)

  def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
    """Appends lines. They are handed to the operating system before this returns.

    Raises:
      SphinxError: the lines cannot be written.
    """
    text = _to_jsonl(lines)
    with files.writing(self._file.parent):
      if files.is_remote(self._file):  # Objects in a bucket cannot grow.
        self._text += text
        files.write_atomic(self._file, self._text)
      else:
        with self._file.open('a') as file:
          file.write(text)


def _to_jsonl(lines: Iterable[Mapping[str, Any]]) -> str:
  return ''.join(json.dumps(entry) + '\n' for entry in lines)


def _finished_file(folder: Path, name: str) -> epath.Path:
  return epath.Path(folder) / f'{name}.jsonl'


def _part_files(folder: Path, name: str) -> list[epath.Path]:
  """Returns the files of processes, sorted."""
  folder = epath.Path(folder)
  if not folder.is_dir():
    return []
  pattern = re.compile(re.escape(name) + r'\.\d+\.jsonl')
  return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
