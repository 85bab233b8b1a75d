"""Answers the questions of a benchmark with a model. A killed run resumes."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from etils import epath

from sphinx_jax.core import prefetch
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.dialog import Encoded
from sphinx_jax.data.record import BadExample
from sphinx_jax.data.skips import Skips
from sphinx_jax.data.slots import Slots
from sphinx_jax.datasets.files import read_image
from sphinx_jax.evaluation import predictions
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question
from sphinx_jax.generate.model import BATCH_SIZE, Model
from sphinx_jax.parallel import hosts

# Batches per call of the model, which sorts the prompts of a call by length. The images of this
# call and of the next one are in memory.
_BATCHES_PER_CALL = 4
_READER_THREADS = 8


class _Prepared(NamedTuple):
  """A question in the form that the model takes.

  Attributes:
    question: the question.
    prompt: the tokenized prompt; None if an image cannot be read.
    images: its images as the model sees them.
    error: the reason if the question cannot be asked, else None.
  """

  question: Question
  prompt: Encoded | None
  images: Sequence[Slots]
  error: BadExample | None = None


def answer(
  model: Model, benchmark: Benchmark, folder: predictions.Path, batch_size: int = BATCH_SIZE
) -> None:
  """Answers a benchmark on all processes and writes folder/NAME.jsonl, a line for each question.

  Every process answers its share of the questions that have no answer yet, with its own copy of
  the weights. Process 0 then merges the files of all processes. A question that cannot be asked
  (unreadable image, prompt too long) gets the answer '' and the reason under 'skipped', so that
  it counts as wrong. The next start asks it again, because its image may have been mended.

  Args:
    model: a model on the devices of this process.
    benchmark: the same on every process.
    folder: the folder of the run (`predictions.claim`), which every process can read and write.
    batch_size: most prompts decoded together.

  Raises:
    SphinxError: most questions cannot be asked, the folder has answers to other questions, or the
      disk is full.
  """
  pending = _pending(benchmark, folder)
  hosts.barrier()  # All processes have read the earlier answers before one of them writes.
  count = hosts.process_count()
  share = pending[hosts.process_index() :: count]
  _answer_questions(model, benchmark, share, folder, batch_size, processes=count)
  hosts.barrier()
  hosts.on_process_0(lambda: predictions.merge(folder, benchmark))


def answer_locally(
  model: Model,
  benchmark: Benchmark,
  folder: predictions.Path,
  batch_size: int = BATCH_SIZE,
  params: dict | None = None,
) -> list[dict]:
  """Answers a benchmark on this process alone and returns its prediction lines in order.

  The answers stay in folder/NAME.0.jsonl, from which a killed run resumes, until the caller calls
  `predictions.finish`.

  Args:
    model: a model on the devices of this process.
    benchmark: the benchmark.
    folder: the folder of the run.
    batch_size: most prompts decoded together.
    params: parameters used in place of the model's own, see `Model.complete`.

  Raises:
    SphinxError: as for `answer`.
  """
  _answer_questions(model, benchmark, _pending(benchmark, folder), folder, batch_size, params)
  return predictions.in_order(benchmark, predictions.answered(folder, benchmark))


def _pending(benchmark: Benchmark, folder: predictions.Path) -> list[Question]:
  """Returns the questions without an answer. Earlier starts may have skipped some of them."""
  earlier = predictions.answered(folder, benchmark)
  done = {key for key, entry in earlier.items() if 'skipped' not in entry}
  return [question for question in benchmark.questions if question.id not in done]


def _answer_questions(
  model: Model,
  benchmark: Benchmark,
  questions: Sequence[Question],
  folder: predictions.Path,
  batch_size: int,
  params: dict | None = None,
  processes: int = 1,
) -> None:
  """Answers questions and appends the lines to the file of this process.

  Args:
    model: the model.
    benchmark: the benchmark of the questions.
    questions: this process's share of the questions to answer.
    folder: the folder of the run.
    batch_size: most prompts decoded together.
    params: see `answer_locally`.
    processes: number of processes that share the questions.
  """
  if not questions:
    return
  total = len(benchmark.questions) // processes
  file = epath.Path(folder) / f'{benchmark.name}.{hosts.process_index()}.jsonl'
  writer = predictions.Writer(file)
  # Of the whole benchmark: the questions that are asked again may all be unusable.
  skips = Skips(Counter(), len(benchmark.questions))
  positions = {question.id: position for position, question in enumerate(benchmark.questions)}
  chunks = _prepared_chunks(model, benchmark, questions, _BATCHES_PER_CALL * batch_size)
  with (
    prefetch.Prefetch(chunks, depth=1) as prefetched,
    Progress(
      total=total, start=total - len(questions), what=benchmark.name, unit='answers'
    ) as progress,
  ):
    for chunk in prefetched:
      for prepared in chunk:
        if prepared.error is not None:
          name = prepared.question.id
          skips.add(benchmark.name, positions[name], name, prepared.error, processes)
      writer.write(_answer_chunk(model, benchmark, chunk, batch_size, params))
      progress.update(len(chunk))


def _answer_chunk(
  model: Model,
  benchmark: Benchmark,
  chunk: Sequence[_Prepared],
  batch_size: int,
  params: dict | None,
) -> list[dict]:
  """Answers one chunk with one call of the model, and returns its prediction lines."""
  usable = [prepared for prepared in chunk if prepared.error is None]
  lengths = [prepared.question.answer_length for prepared in usable]
  texts = model.complete(
    [prepared.prompt for prepared in usable],
    [prepared.images for prepared in usable],
    max_new_tokens=benchmark.max_new_tokens,
    expected=None if None in lengths else lengths,
    batch_size=batch_size,
    params=params,
  )
  answers = {prepared.question.id: text for prepared, text in zip(usable, texts)}
  lines = []
  for question, _, _, error in chunk:
    if error is None:
      lines.append(predictions.line(question, answers[question.id]))
    else:
      lines.append(predictions.line(question, '', skipped=error.reason))
  return lines


def _prepared_chunks(
  model: Model, benchmark: Benchmark, questions: Sequence[Question], size: int
) -> Iterator[list[_Prepared]]:
  """Yields chunks of `size` questions, tokenized and with their images read."""
  with ThreadPoolExecutor(_READER_THREADS) as pool:
    for begin in range(0, len(questions), size):
      chunk = questions[begin : begin + size]
      # Questions about one image share one array, so that it is read and encoded once.
      by_image = {image: question for question in chunk for image in question.images}
      read = pool.map(functools.partial(_read_image, model), by_image.values(), by_image)
      pixels = dict(zip(by_image, read))
      yield [
        _prepare(model, benchmark.prefix, question, [pixels[image] for image in question.images])
        for question in chunk
      ]


def _read_image(model: Model, question: Question, image: Path | bytes) -> Slots | BadExample:
  """Returns an image of a question as the model sees it, or the reason if it is unreadable.

  Full pages would fill the memory.
  """
  try:
    return model.read_image(read_image(question.id, image))
  except BadExample as error:
    return error


def _prepare(
  model: Model, prefix: str, question: Question, images: Sequence[Slots | BadExample]
) -> _Prepared:
  """Tokenizes a question and checks that it can be asked."""
  turns = [*question.history, (question.prompt, None)]
  for image in images:
    if isinstance(image, BadExample):
      return _Prepared(question, None, (), image)
  prompt = model.prompt_of(turns, len(images), prefix, question.marks)
  length = len(prompt.ids) + len(prompt.images_at) * model.visual_tokens
  if length >= model.max_length:
    error = BadExample('prompt too long', f'{length} positions of {model.max_length}')
    return _Prepared(question, prompt, (), error)
  return _Prepared(question, prompt, images)
