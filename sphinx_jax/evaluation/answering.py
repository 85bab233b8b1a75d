"""Answers questions with a model. A killed run resumes."""

import functools
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from etils import epath

from sphinx_jax.core import prefetch, text
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
_NO_OPTIONS = types.MappingProxyType({})


class Asked(Protocol):
  """What is answered: a benchmark, or the items of a user (items.py).

  Attributes:
    name: name of its files.
    questions: those to be answered. They may be read when they are asked for.
    ids: of the questions.
    prompts: id -> prompt, of the questions whose id does not stand for the prompt.
    prefix: the beginning of every answer, which the model is given.
    max_new_tokens: length of the longest answer.
  """

  @property
  def name(self) -> str: ...
  @property
  def questions(self) -> Sequence[Question]: ...
  @property
  def ids(self) -> Sequence[str]: ...
  @property
  def prompts(self) -> Mapping[str, str]: ...
  @property
  def prefix(self) -> str: ...
  @property
  def max_new_tokens(self) -> int: ...


class _Prepared(NamedTuple):
  """A question in the form that the model takes.

  Attributes:
    index: its index in the questions.
    question: the question.
    prompt: the tokenized prompt; None if an image cannot be read.
    images: its images as the model sees them.
    error: the reason if the question cannot be asked, else None.
  """

  index: int
  question: Question
  prompt: Encoded | None
  images: Sequence[Slots]
  error: BadExample | None = None


def answer(
  model: Model,
  asked: Asked,
  folder: predictions.Path,
  batch_size: int = BATCH_SIZE,
  options: Mapping[str, Any] = _NO_OPTIONS,
  max_skipped: float = 0.5,
  unit: str = 'answers',
) -> None:
  """Answers questions on all processes and writes folder/NAME.jsonl, a line for each of them.

  Every process answers its share of the questions that have no answer yet, with its own copy of
  the weights. Process 0 then merges the files of all processes. A question that cannot be asked
  (unreadable image, prompt too long) gets the answer '' and the reason under 'skipped', so that
  it counts as wrong. The next start asks it again, because its image may have been mended.

  Answers depend neither on each other nor on the batches: also with a temperature, the random
  stream of a question comes from its id.

  Args:
    model: a model on the devices of this process.
    asked: the same on every process.
    folder: the folder of the run (`predictions.claim_folder`), which every process can read and
      write.
    batch_size: most prompts decoded together.
    options: `temperature`, `top_p` and `seed`, as in `Model.complete`.
    max_skipped: share of questions that may be impossible to ask, see `Skips`.
    unit: what is counted in the log.

  Raises:
    SphinxError: too many questions cannot be asked, the folder has answers to other questions, or
      the disk is full.
  """
  pending = _pending(asked, folder)
  hosts.barrier()  # All processes have read the earlier answers before one of them writes.
  count = hosts.process_count()
  share = pending[hosts.process_index() :: count]
  _answer_questions(
    model, asked, share, folder, batch_size, options, max_skipped, unit, processes=count
  )
  hosts.barrier()
  hosts.on_process_0(lambda: predictions.merge(folder, asked.name, asked.ids))


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
  pending = _pending(benchmark, folder)
  _answer_questions(model, benchmark, pending, folder, batch_size, {'params': params})
  return predictions.in_order(benchmark, predictions.Answers(folder, benchmark.name))


def _pending(asked: Asked, folder: predictions.Path) -> list[int]:
  """Returns the indices of questions without an answer. Earlier starts may have skipped some."""
  earlier = predictions.Answers(folder, asked.name, asked.prompts)
  is_done = lambda key: key in earlier and key not in earlier.skipped
  return [index for index, key in enumerate(asked.ids) if not is_done(key)]


def _answer_questions(
  model: Model,
  asked: Asked,
  indices: Sequence[int],
  folder: predictions.Path,
  batch_size: int,
  options: Mapping[str, Any],
  max_skipped: float = 0.5,
  unit: str = 'answers',
  processes: int = 1,
) -> None:
  """Answers questions and appends the lines to the file of this process.

  Args:
    model: the model.
    asked: what is answered.
    indices: of this process's share of its questions.
    folder: the folder of the run.
    batch_size: most prompts decoded together.
    options: keyword arguments of `Model.complete`.
    max_skipped: see `answer`.
    unit: see `answer`.
    processes: number of processes that share the questions.
  """
  if not indices:
    return
  total = max(len(asked.questions) // processes, len(indices))
  writer = predictions.Writer(epath.Path(folder) / f'{asked.name}.{hosts.process_index()}.jsonl')
  # Of all questions: those that are asked again may all be unusable.
  skips = Skips(Counter(), len(asked.questions), max_skipped)
  chunks = _prepared_chunks(model, asked, indices, _BATCHES_PER_CALL * batch_size)
  with (
    prefetch.Prefetch(chunks, depth=1) as prefetched,
    Progress(total=total, start=total - len(indices), what=asked.name, unit=unit) as progress,
  ):
    for chunk in prefetched:
      for index, question, _, _, error in chunk:
        if error is not None:
          name = question.location or question.id
          skips.add(asked.name, index, name, error, processes)
      writer.write(_answer_chunk(model, asked, chunk, batch_size, options))
      progress.update(len(chunk))


def _answer_chunk(
  model: Model,
  asked: Asked,
  chunk: Sequence[_Prepared],
  batch_size: int,
  options: Mapping[str, Any],
) -> list[dict]:
  """Answers one chunk with one call of the model, and returns its prediction lines."""
  usable = [prepared for prepared in chunk if prepared.error is None]
  lengths = [prepared.question.answer_length for prepared in usable]
  texts = model.complete(
    [prepared.prompt for prepared in usable],
    [prepared.images for prepared in usable],
    max_new_tokens=asked.max_new_tokens,
    expected=None if None in lengths else lengths,
    batch_size=batch_size,
    streams=[_stream(prepared.question.id) for prepared in usable],
    **options,
  )
  answers = {prepared.index: answer for prepared, answer in zip(usable, texts)}
  return [
    predictions.line(prepared.question, answers.get(prepared.index, ''), prepared.error)
    for prepared in chunk
  ]


def _stream(key: str) -> int:
  """The random stream of a question."""
  return int(text.digest(key)[:8], 16)


def _prepared_chunks(
  model: Model, asked: Asked, indices: Sequence[int], size: int
) -> Iterator[list[_Prepared]]:
  """Yields chunks of `size` questions, tokenized and with their images read."""
  with ThreadPoolExecutor(_READER_THREADS) as pool:
    for begin in range(0, len(indices), size):
      chunk = [asked.questions[index] for index in indices[begin : begin + size]]
      # Questions about one image share one array, so that it is read and encoded once.
      by_image = {image: question for question in chunk for image in question.images}
      read = pool.map(functools.partial(_read_image, model), by_image.values(), by_image)
      pixels = dict(zip(by_image, read))
      yield [
        _prepare(model, asked.prefix, index, question, [pixels[image] for image in question.images])
        for index, question in zip(indices[begin:], chunk)
      ]


def _read_image(model: Model, question: Question, image: Path | bytes) -> Slots | BadExample:
  """Returns an image of a question as the model sees it, or the reason if it is unreadable.

  Full pages would fill the memory.
  """
  try:
    return model.read_image(read_image(question.location or question.id, image))
  except BadExample as error:
    return error


def _prepare(
  model: Model, prefix: str, index: int, question: Question, images: Sequence[Slots | BadExample]
) -> _Prepared:
  """Tokenizes a question and checks that it can be asked."""
  turns = [*question.history, (question.prompt, None)]
  for fault in (question.fault, *images):
    if isinstance(fault, BadExample):
      return _Prepared(index, question, None, (), fault)
  prompt = model.prompt_of(turns, len(images), prefix, question.marks)
  length = len(prompt.ids) + len(prompt.images_at) * model.visual_tokens
  if length >= model.max_length:
    error = BadExample('prompt too long', f'{length} positions of {model.max_length}')
    return _Prepared(index, question, prompt, (), error)
  return _Prepared(index, question, prompt, images)
