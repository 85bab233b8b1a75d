"""Predictions on disk: JSON lines with ids, from which a killed run resumes.

The folder of a run has `run.json` (its checkpoint and settings), `NAME.jsonl` (the finished file of
a benchmark, in the order of its questions) and, while a benchmark is being answered,
`NAME.PROCESS.jsonl`, to which each process appends its answers. A finished file can be scored
alone, whoever wrote it. The answers of a run may be more than fit in memory.
"""

import io
import json
import os
import re
import types
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from sphinx_jax.core import config as config_lib, errors, files, paths
from sphinx_jax.core.progress import log
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import as_id, as_text
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question

Path = str | os.PathLike


def line(question: Question, answer: str, skipped: BadExample | None = None) -> dict[str, Any]:
  """Returns the prediction line of a question.

  Args:
    question: its entry, id and prompt are part of the line.
    answer: the model's answer, '' if the question was skipped.
    skipped: why the question could not be asked. Its reason and message become part of the line.
  """
  result = {**question.entry, 'id': question.id, 'prompt': question.prompt, 'answer': answer}
  if skipped is not None:
    result |= {'skipped': skipped.reason, 'message': skipped.message}
  return result


def read(file: Path) -> list[dict[str, Any]]:
  """Returns the lines of a predictions file, without a last line that a killed run cut off.

  Files of other programs may be a JSON list, packed, or without a last newline. Ids and answers in
  them may be numbers.

  Raises:
    SphinxError: the file is missing, or a line is not a prediction.
  """
  items = files.read_items(file, drop_partial=True)
  return [_prediction(file, place, entry) for place, entry in items]


def _prediction(file: Path, place: str, entry: Any) -> dict[str, Any]:
  """Returns an item of a predictions file, with its id and answer as texts."""
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
  return {**entry, 'id': str(key), 'answer': answer}


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


def claim_folder(
  folder: Path,
  run: Mapping[str, Any],
  extensible: str | None = None,
  who: str = '',
  do: str = 'use another folder, or remove this one',
) -> epath.Path:
  """Writes run.json into a folder, or checks that the folder belongs to this run.

  Args:
    folder: the folder, made if absent.
    run: plain JSON that identifies the run. What an older run.json lacks is not compared.
    extensible: a key of `run` whose value is a dict to which later runs may add entries. Only
      entries that both have are compared.
    who: the output that the user named, for the message; '' is the folder.
    do: the advice of the message.

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
        who or f"evaluation folder '{folder}'",
        f'answers of another run ({"; ".join(different)})',
        'answers of this checkpoint with these settings',
        do,
      )
  paths.make_folder(folder)
  files.write_json(file, run)
  return folder


class _Place(NamedTuple):
  """Where a line is: the number of the file, and the offset and the number of its bytes."""

  file: int
  begin: int
  size: int


class Answers(Mapping[str, dict[str, Any]]):
  """The lines of a run's answers so far by id, which are read from disk when asked for.

  They come from the files of any number of processes. The answer to a question that was skipped
  before replaces the line that skipped it.

  Args:
    folder: the folder of the run.
    name: name of the benchmark.
    prompts: id -> prompt of the questions that are asked now.

  Attributes:
    skipped: ids of the questions that could not be asked.

  Raises:
    SphinxError: a file has an answer to another question with the same id, or cannot be read.
  """

  def __init__(
    self, folder: Path, name: str, prompts: Mapping[str, str] = types.MappingProxyType({})
  ) -> None:
    self.skipped: set[str] = set()
    self._places: dict[str, _Place] = {}
    paths = [_finished_file(folder, name), *_part_files(folder, name)]
    self._paths = [path for path in paths if path.exists()]
    self._files = [_open(path) for path in self._paths]
    for number, (path, file) in enumerate(zip(self._paths, self._files)):
      for line, entry in _scan(path, file):
        key = entry['id']
        prompt = prompts.get(key)
        if prompt is not None and entry.get('prompt', prompt) != prompt:
          raise errors.make(
            f"predictions '{path}'",
            f'an answer to {entry["prompt"][:80]!r}',
            f'one to {prompt[:80]!r}',
            'use another folder, or remove the file',
          )
        if key in self._places and key not in self.skipped:
          continue
        self._places[key] = _Place(number, line.begin, len(line.text))
        if 'skipped' in entry:
          self.skipped.add(key)
        else:
          self.skipped.discard(key)

  def __getitem__(self, key: str) -> dict[str, Any]:
    place = self._places[key]
    return _prediction(self._paths[place.file], f'id {key!r}', json.loads(self.raw(key)))

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)

  def raw(self, key: str) -> bytes:
    """Returns a line as it is on disk, with a line break at its end."""
    place = self._places[key]
    file = self._files[place.file]
    file.seek(place.begin)
    return file.read(place.size).rstrip(b'\n') + b'\n'


def _open(path: epath.Path) -> BinaryIO:
  return io.BytesIO(path.read_bytes()) if files.is_remote(path) else files.open_seekable(path)


def _scan(path: Path, file: BinaryIO) -> Iterator[tuple[files.JsonLine, dict[str, Any]]]:
  """Yields (line, prediction) of a file, without a last line that a killed run cut off."""
  for line in files.scan_jsonl(file, f"predictions '{path}'", drop_partial=True):
    yield line, _prediction(path, f'line {line.number}', line.value)


def merge(folder: Path, name: str, ids: Sequence[str]) -> None:
  """Writes the finished file from the files of all processes. One process calls it, at the end.

  Raises:
    SphinxError: an answer is missing.
  """
  answers = Answers(folder, name)
  check_complete(name, ids, answers)
  current = set(ids)
  # An earlier run with a higher --limit answered more questions. They are kept.
  others = [key for key in answers if key not in current]
  _finish(folder, name, map(answers.raw, [*ids, *others]))


def finish(folder: Path, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes the finished file of a benchmark, atomically, and removes the files of processes."""
  _finish(folder, name, map(to_line, lines))


def _finish(folder: Path, name: str, lines: Iterable[bytes]) -> None:
  with files.open_atomic(_finished_file(folder, name)) as file:
    file.writelines(lines)
  for part in _part_files(folder, name):
    part.unlink()


def check_complete(name: str, ids: Sequence[str], entries: Container[str]) -> None:
  """Raises SphinxError unless there is an entry for every id of a benchmark's questions."""
  missing = [key for key in ids if key not in entries]
  if missing:
    raise errors.make(
      f"predictions of '{name}'",
      f'{len(ids) - len(missing)} of {len(ids)} answers',
      f'all (missing: {", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""})',
      'run the evaluation again to resume it, or score the first questions with --limit',
    )


def in_order(benchmark: Benchmark, entries: Mapping[str, dict]) -> list[dict[str, Any]]:
  """Returns the lines of a benchmark's questions, in the order of the questions.

  Args:
    benchmark: the benchmark.
    entries: {id: line}.

  Raises:
    SphinxError: some answers are missing.
  """
  check_complete(benchmark.name, benchmark.ids, entries)
  return [entries[key] for key in benchmark.ids]


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
  others = set(counts) - set(benchmark.ids)
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
    self._content = b''  # Of an object in a bucket, which cannot grow.
    if self._file.exists():
      with _open(self._file) as earlier, files.open_atomic(self._file) as kept:
        for line, entry in _scan(self._file, earlier):
          if 'skipped' not in entry:
            kept.write(line.text.rstrip(b'\n') + b'\n')
      if files.is_remote(self._file):
        self._content = self._file.read_bytes()

  def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
    """Appends lines. They are handed to the operating system before this returns.

    Raises:
      SphinxError: the lines cannot be written.
    """
    data = b''.join(map(to_line, lines))
    with files.writing(self._file.parent):
      if files.is_remote(self._file):
        self._content += data
        files.write_atomic(self._file, self._content)
      else:
        with self._file.open('ab') as file:
          file.write(data)


def to_line(entry: Mapping[str, Any]) -> bytes:
  """Returns an entry as a line of a file."""
  return json.dumps(entry).encode() + b'\n'


def _finished_file(folder: Path, name: str) -> epath.Path:
  return epath.Path(folder) / f'{name}.jsonl'


def _part_files(folder: Path, name: str) -> list[epath.Path]:
  """Returns the files of processes, sorted."""
  folder = epath.Path(folder)
  if not folder.is_dir():
    return []
  pattern = re.compile(re.escape(name) + r'\.\d+\.jsonl')
  return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
