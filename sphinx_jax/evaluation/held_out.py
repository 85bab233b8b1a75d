"""Scores a model on held-out tasks by generation, with the image and blind.

Blind means that the same model sees the mean image in place of every image. Its score is what a
task gives away without looking.

A task's held-out split becomes two benchmarks, `NAME.final` and `NAME.blind`, which are answered
like the published ones (answering.py) and scored by the task's own metric. The folder gets
`run.json` (what it belongs to), `NAME.final.jsonl` and `NAME.blind.jsonl` (one scored line a
question), `images/` (the first images of every task, for the report) and `results.json`. A
finished file is not computed again, except for examples that were skipped and can be read by now. A
killed evaluation resumes inside a task.
"""

import dataclasses
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from sphinx_jax import datasets
from sphinx_jax.core import errors, files, paths as paths_lib, renames
from sphinx_jax.core.progress import log
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample, Record, Source, check_unicode
from sphinx_jax.data.skips import Skips
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.evaluation import answering, bootstrap, predictions
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question
from sphinx_jax.generate.model import BATCH_SIZE, Model
from sphinx_jax.tasks import TASKS

PASSES = ('final', 'blind')
_SAMPLES = 8  # Images per task that are kept for the report.


def evaluate(
  model: Model,
  sources: Mapping[str, Source],
  examples: int,
  mean_image: np.ndarray,
  folder: predictions.Path,
  run: str = '',
  batch_size: int = BATCH_SIZE,
  params: dict | None = None,
  weights: Any = None,
  blind: bool = True,
) -> dict[str, dict[str, Any]]:
  """Answers and scores every task, with the image and blind. One process does the work.

  Args:
    model: a loaded model.
    sources: {name: held-out records}. The task of a record decides how it is scored.
    examples: most questions per name. Every turn of a record is one question, asked after the true
      turns before it.
    mean_image: uint8[Y,X,3], the image that the blind model sees.
    folder: where everything is written.
    run: text that identifies the weights.
    batch_size: most prompts decoded together.
    params: parameters used in place of the model's own, see `Model.complete`.
    weights: see `predictions.claim`.
    blind: whether the blind pass is made, too.

  Returns:
    {name: result as of `summary`}, which is also written to `results.json`.

  Raises:
    SphinxError: the folder belongs to another run, or a source has no usable example.
  """
  folder = _claim(folder, sources, examples, run, weights)
  results = {}
  for name, source in sources.items():
    benchmarks = [open_task(name, source, examples, model.tokenizer)]
    if blind:
      benchmarks.append(blinded(benchmarks[0], name, mean_image))
    results[name] = summary(
      *(_lines(model, one, folder, examples, batch_size, params) for one in benchmarks)
    )
    log.info('%s', format_result(name, results[name]))
  files.write_json(folder / 'results.json', results)
  return results


def score(
  model: Model,
  sources: Mapping[str, Source],
  examples: int,
  folder: predictions.Path,
  run: str = '',
  batch_size: int = BATCH_SIZE,
  params: dict | None = None,
  weights: Any = None,
) -> dict[str, float]:
  """Answers every task with the image alone, for many models that are compared with each other.

  Args, errors: as of `evaluate`.

  Returns:
    {name: score}.
  """
  folder = _claim(folder, sources, examples, run, weights)
  scores = {}
  for name, source in sources.items():
    benchmark = open_task(name, source, examples, model.tokenizer)
    lines = _lines(model, benchmark, folder, examples, batch_size, params)
    scores[name] = bootstrap.ratio(*_sums_by_record(lines))
  return scores


def _claim(
  folder: predictions.Path, sources: Mapping[str, Source], examples: int, run: str, weights: Any
) -> epath.Path:
  """Claims the folder of an evaluation, and makes its folder of images."""
  sizes = {name: len(source) for name, source in sources.items()}
  opened = {  # By their names: the folder of the data may have moved.
    name: {os.path.basename(path): value for path, value in source.files.items()}
    for name, source in sources.items()
  }
  folder = predictions.claim_folder(
    folder,
    {'run': run, 'weights': weights, 'examples': examples, 'sources': sizes, 'files': opened},
  )
  paths_lib.make_folder(folder / 'images')
  return folder


def open_task(name: str, source: Source, examples: int, tokenizer: Tokenizer) -> Benchmark:
  """Returns the benchmark `NAME.final` with the first questions of a source.

  The longest allowed answer is half again as long as the longest true answer.

  Args:
    name: name of the task in the mixture.
    source: held-out records. Unusable ones are logged and skipped.
    examples: most questions.
    tokenizer: the model's tokenizer, which measures the true answers.

  Raises:
    SphinxError: no record is usable.
  """
  questions: list[Question] = []
  skips = Skips(Counter(), len(source), max_skipped=1.0)  # Logs some of many.
  for index in range(len(source)):
    if len(questions) >= examples:
      break
    try:
      record = source[index]
      for encoded in record.images:
        images.decode(encoded)
      check_unicode(text for turn in record.turns for text in turn)
    except BadExample as error:
      skips.add(name, index, f'example {index}', error)
      continue
    first = len(questions)
    questions += [_question(record, turn, first + turn) for turn in range(len(record.turns))]
  questions = questions[:examples]
  if not questions:
    raise errors.make(
      f"task '{name}'",
      f'no usable example among {len(source)}',
      'at least one',
      'check its data or leave the task out',
    )
  longest = max(len(tokenizer.encode(question.entry['true_answer'])) for question in questions)
  return Benchmark(
    name=f'{name}.final',
    questions=questions,
    prefix='',
    max_new_tokens=longest + longest // 2 + 8,
    protocol=TASKS[questions[0].entry['task']].metric,
    hidden=False,
    settings={},
  )


def _question(record: Record, turn: int, number: int) -> Question:
  """Returns one turn of a record as question `number` of its task."""
  prompt, answer = record.turns[turn]
  return Question(
    id=f'{number}/{record.id}',  # All turns of a record share the record's id.
    images=record.images,
    prompt=prompt,
    entry={
      'record': record.id,
      'task': record.task,
      'true_answer': answer,
      'truth': record.truth[turn],
    },
    history=tuple(record.turns[:turn]),
    answer_length=len(answer),
    marks=record.marks,
  )


def blinded(benchmark: Benchmark, name: str, mean_image: np.ndarray) -> Benchmark:
  """Returns the benchmark `NAME.blind`: every image of the questions is the mean image."""
  buffer = io.BytesIO()
  Image.fromarray(mean_image).save(buffer, 'PNG')
  encoded = buffer.getvalue()
  questions = [
    dataclasses.replace(question, images=(encoded,) * len(question.images))
    for question in benchmark.questions
  ]
  return dataclasses.replace(benchmark, name=f'{name}.blind', questions=questions)


def _lines(
  model: Model,
  benchmark: Benchmark,
  folder: epath.Path,
  examples: int,
  batch_size: int,
  params: dict | None,
) -> list[dict[str, Any]]:
  """Returns the scored lines of a pass, and answers it before if it is not finished."""
  if not _is_finished(benchmark, folder, examples):
    _answer_and_score(model, benchmark, folder, batch_size, params)
  return files.read_jsonl(folder / f'{benchmark.name}.jsonl')


def _is_finished(benchmark: Benchmark, folder: epath.Path, examples: int) -> bool:
  """Whether the finished file of a task has all questions that can be asked.

  If it lacks some, because their images were mended since, it becomes a file to resume from.

  Args:
    benchmark: what can be asked now.
    folder: folder of the evaluation.
    examples: most questions. Where a file has as many, a further one at the end takes the place of
      an example that was damaged since, and is not missing.
  """
  file = folder / f'{benchmark.name}.jsonl'
  if not file.exists():
    return False
  lines = files.read_jsonl(file)
  asked = {
    key: line['prediction']
    for key, line in zip(_numbered(line['id'] for line in lines), lines)
    if 'skipped' not in line
  }
  keys = _numbered(question.entry['record'] for question in benchmark.questions)
  known = [key in asked for key in keys]
  end = len(known) - known[::-1].index(True) if len(lines) >= examples and any(known) else None
  if all(known[:end]):
    return True
  kept = [
    predictions.line(question, asked[key])
    for key, question in zip(keys, benchmark.questions)
    if key in asked
  ]
  predictions.Writer(folder / f'{benchmark.name}.0.jsonl').write(kept)
  file.unlink()
  return False


def _numbered(records: Iterable[str]) -> list[tuple[str, int]]:
  """Returns (record, number of the question about it)."""
  seen: Counter[str] = Counter()
  numbered = []
  for record in records:
    numbered.append((record, seen[record]))
    seen[record] += 1
  return numbered


def _answer_and_score(
  model: Model, benchmark: Benchmark, folder: epath.Path, batch_size: int, params: dict | None
) -> None:
  """Answers a task's benchmark and writes its scored lines; `final` keeps images for the report."""
  predicted = answering.answer_locally(model, benchmark, folder, batch_size, params)
  lines = [scored_line(*pair) for pair in zip(benchmark.questions, predicted)]
  name, _, kind = benchmark.name.rpartition('.')
  if kind == 'final':
    for number, question in enumerate(benchmark.questions[:_SAMPLES]):
      if not question.images:
        continue
      lines[number]['image'] = f'images/{name}-{number}.png'
      shown = images.beside([images.decode(image) for image in question.images])
      Image.fromarray(shown).save(folder / lines[number]['image'])
  predictions.finish(folder, benchmark.name, lines)


def scored_line(question: Question, predicted: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the line of a finished file: a question with the answer and its score.

  Args:
    question: a question of `open_task`.
    predicted: its prediction line.
  """
  entry = question.entry
  numerator, denominator = TASKS[entry['task']].score(predicted['answer'], entry['truth'])
  line = {
    'id': entry['record'],
    'task': entry['task'],
    'instruction': question.prompt,
    'prediction': predicted['answer'],
    'answer': entry['true_answer'],
    'truth': entry['truth'],
    'numerator': numerator,
    'denominator': denominator,
  }
  if 'skipped' in predicted:
    line['skipped'] = predicted['skipped']
  return line


def open_split(
  config: ConfigDict, names: Sequence[str], split: str | None, data_dir: str | None = None
) -> dict[str, Source]:
  """Opens the records of some tasks of a run's mixture, one question per record.

  Args:
    config: the run's config.
    names: names of entries of the mixture.
    split: 'train' is what the run trains on. 'validation' is the entry of `config.validation` with
      the task's name, or if there is none, that split of the task's source. Any other name is that
      split of the source; a source without splits has the entry of `config.validation` alone.
      None: the entry of `config.validation`, or the split 'test'.
    data_dir: directory of the data, or None for the config's.

  Returns:
    {name: source}.

  Raises:
    SphinxError: the mixture does not have a task, or nothing is held out of it.
  """
  sources = {}
  for name in names:
    entry = {**_split_entry(config, name, split), 'max_turns': 1}
    sources[name] = datasets.open_source(entry, data_dir or config.data_dir)
  return sources


def _split_entry(config: ConfigDict, name: str, split: str | None) -> dict[str, Any]:
  """Returns the mixture entry with which the split of a task is opened."""
  if name not in config.mixture:
    raise errors.unknown(f"task of '{config.name}'", name, config.mixture)
  entry = config.mixture[name].to_dict()
  if split == 'train':
    return entry
  is_held_out = name in config.validation
  if is_held_out:
    entry = config.validation[name].to_dict()
  # The held-out records of other sources are in another file or folder.
  has_splits = 'split' in entry and entry['source'] != 'array_record'
  if is_held_out and (split in (None, 'validation') or not has_splits):
    return entry
  split = split or 'test'
  if not has_splits:
    raise errors.make(
      f"task '{name}'",
      f"a source without a split '{split}'",
      'records that are not trained on',
      f'name them in config.validation.{name}',
    )
  return {**entry, 'split': split}


def tasks_with_metric(config: ConfigDict, names: Sequence[str] | None = None) -> list[str]:
  """Returns the entries of a run's mixture to score.

  Args:
    config: the run's config.
    names: names of entries, or None for all whose task has a metric.

  Raises:
    SphinxError: an entry is unknown, or has a task without a metric (dialog, text), or no entry has
      one.
  """
  tasks = {name: _task_of(entry) for name, entry in config.mixture.items()}
  unknown = [name for name in names or () if name not in tasks]
  if unknown:
    raise errors.unknown(f"task of '{config.name}'", unknown[0], tasks)
  without = [name for name in names or tasks if TASKS[tasks[name]].metric == 'none']
  chosen = [name for name in names or tasks if name not in without]
  if not chosen or (names and without):
    listed = ', '.join(f"'{name}' ({tasks[name]})" for name in without)
    raise errors.make(
      f"tasks of '{config.name}'",
      f'{listed}, without a metric',
      'only tasks with a metric' if names else 'an entry of the mixture whose task has a metric',
      'score the checkpoint on published benchmarks instead (--benchmarks)',
    )
  return chosen


def _task_of(entry: Mapping[str, Any]) -> str:
  """Returns the task of a mixture entry: its own, or the usual one of its source."""
  source = renames.source(entry['source'])
  usual = datasets.FAMILIES[source].TASKS[0] if source in datasets.FAMILIES else 'dialog'
  return entry.get('task') or usual


def mean_image(
  sources: Mapping[str, Source], size: int, alpha: str = 'drop', examples: int = 64
) -> np.ndarray:
  """Returns the mean image of the first records of every source, uint8[size,size,3].

  Args:
    sources: {name: records}.
    size: edge of the padded square in pixels.
    alpha: what happens to transparent pixels, see `images.decode`.
    examples: most records per source.

  Raises:
    SphinxError: there is no readable image.
  """
  total, count = np.zeros((size, size, 3)), 0
  for source in sources.values():
    for index in range(min(examples, len(source))):
      try:
        for encoded in source[index].images:
          total += images.square(encoded, size, alpha=alpha)
          count += 1
      except BadExample:
        continue  # `open_task` logs the bad records of the split that is asked.
  if not count:
    raise errors.make('mean image', 'no image', 'at least one readable image', 'check the sources')
  return np.round(total / count).astype(np.uint8)


def summary(
  final: Sequence[Mapping[str, Any]], blind: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
  """Returns the result of one task from the scored lines of its two passes.

  Args:
    final: lines of the pass with images.
    blind: lines of the blind pass; (): it was not made.

  Returns:
    {'metric': str, 'blind', 'blind_low', 'blind_high', 'final', 'low', 'high': float,
    'examples': int}. 'low' and 'high' bound the 95 % bootstrap interval, resampled over records.
    What belongs to the blind pass is absent without it.
  """
  of_blind = {}
  if blind:
    blind_sums = _sums_by_record(blind)
    low, high = bootstrap.interval(*blind_sums)
    of_blind = {'blind': bootstrap.ratio(*blind_sums), 'blind_low': low, 'blind_high': high}
  final_sums = _sums_by_record(final)
  low, high = bootstrap.interval(*final_sums)
  return {
    'metric': TASKS[final[0]['task']].metric,
    **of_blind,
    'final': bootstrap.ratio(*final_sums),
    'low': low,
    'high': high,
    'examples': len(final),
  }


def by_record(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
  """Returns {record: (numerator, denominator)}, summed over the questions of a record."""
  sums: dict[str, tuple[float, float]] = {}
  for line in lines:
    above, below = sums.get(line['id'], (0.0, 0.0))
    sums[line['id']] = above + line['numerator'], below + line['denominator']
  return sums


def _sums_by_record(lines: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
  """Returns numerators and denominators float64[records] of `by_record`."""
  numerators, denominators = np.array(list(by_record(lines).values())).T
  return numerators, denominators


def format_result(name: str, result: Mapping[str, Any]) -> str:
  """Returns one result as a line of text."""
  interval = f'[{result["low"]:.3f}, {result["high"]:.3f}]'
  blind = f', blind {result["blind"]:.3f}' if 'blind' in result else ''
  return (
    f'{name:18s} {result["metric"]:28s} {result["final"]:.3f} {interval}{blind}, '
    f'{result["examples"]} examples'
  )
