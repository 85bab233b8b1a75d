"""Has questions answered by a model or a server. A killed run resumes."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from etils import epath

from sphinx_jax.core import prefetch
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.data.skips import Skips
from sphinx_jax.datasets.files import read_image
from sphinx_jax.evaluation import predictions
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question
from sphinx_jax.evaluation.by_model import ByModel
from sphinx_jax.generate.model import BATCH_SIZE, Model
from sphinx_jax.parallel import hosts

_READER_THREADS = 8


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


class Answerer(Protocol):
  """What answers questions: a model (by_model.py) or a server (by_server.py).

  Attributes:
    per_call: questions of a call. The images of this call and of the next one are in memory.
  """

  @property
  def per_call(self) -> int: ...

  def read_image(self, data: bytes) -> Any:
    """Returns an image file in the form that `answer` takes. Raises BadExample."""

  def prompt(self, question: Question, images: int, prefix: str) -> Any:
    """Returns what is asked, in the form that `answer` takes. Raises BadExample."""

  def answer(
    self,
    questions: Sequence[Question],
    prompts: Sequence[Any],
    images: Sequence[Sequence[Any]],
    max_new_tokens: int,
  ) -> Sequence[str | BadExample]:
    """Returns the answers, or why there is none."""


class _Prepared(NamedTuple):
  """A question in the form that is asked.

  Attributes:
    index: its index in the questions.
    question: the question.
    prompt: from `Answerer.prompt`; None if there is an error.
    images: its images from `Answerer.read_image`.
    error: the reason if the question cannot be asked, else None.
  """

  index: int
  question: Question
  prompt: Any = None
  images: Sequence[Any] = ()
  error: BadExample | None = None


def answer(
  answerer: Answerer,
  asked: Asked,
  folder: predictions.Path,
  max_skipped: float = 0.5,
  unit: str = 'answers',
) -> None:
  """Answers questions on all processes and writes folder/NAME.jsonl, a line for each of them.

  Every process has its share of the questions answered that have no answer yet. Process 0 then
  merges the files of all processes. A question that cannot be asked (unreadable image, prompt too
  long) gets the answer '' and the reason under 'skipped', so that it counts as wrong. The next
  start asks it again, because its image may have been mended.

  Args:
    answerer: one for each process, for instance a model on its devices.
    asked: the same on every process.
    folder: the folder of the run (`predictions.claim_folder`), which every process can read and
      write.
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
  _answer_questions(answerer, asked, share, folder, max_skipped, unit, processes=count)
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
  by_model = ByModel(model, batch_size, {'params': params})
  _answer_questions(by_model, benchmark, pending, folder)
  return predictions.in_order(benchmark, predictions.Answers(folder, benchmark.name))


def _pending(asked: Asked, folder: predictions.Path) -> list[int]:
  """Returns the indices of questions without an answer. Earlier starts may have skipped some."""
  earlier = predictions.Answers(folder, asked.name, asked.prompts)
  is_done = lambda key: key in earlier and key not in earlier.skipped
  return [index for index, key in enumerate(asked.ids) if not is_done(key)]


def _answer_questions(
  answerer: Answerer,
  asked: Asked,
  indices: Sequence[int],
  folder: predictions.Path,
  max_skipped: float = 0.5,
  unit: str = 'answers',
  processes: int = 1,
) -> None:
  """Has questions answered and appends the lines to the file of this process.

  Args:
    answerer: as for `answer`.
    asked: what is answered.
    indices: of this process's share of its questions.
    folder: the folder of the run.
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

  def skip(prepared: _Prepared, error: BadExample) -> None:
    name = prepared.question.location or prepared.question.id
    skips.add(asked.name, prepared.index, name, error, processes)

  chunks = _prepared_chunks(answerer, asked, indices)
  with (
    prefetch.Prefetch(chunks, depth=1) as prefetched,
    Progress(total=total, start=total - len(indices), what=asked.name, unit=unit) as progress,
  ):
    for chunk in prefetched:
      for prepared in chunk:
        if prepared.error is not None:
          skip(prepared, prepared.error)
      lines = []
      for prepared, found in zip(chunk, _answers(answerer, asked, chunk)):
        error = found if isinstance(found, BadExample) else None
        if prepared.error is None and error is not None:
          skip(prepared, error)
        lines.append(predictions.line(prepared.question, '' if error else found, error))
      writer.write(lines)
      progress.update(len(chunk))


def _answers(
  answerer: Answerer, asked: Asked, chunk: Sequence[_Prepared]
) -> list[str | BadExample]:
  """Returns the answers of one chunk, or why there is none."""
  usable = [prepared for prepared in chunk if prepared.error is None]
  answers = iter(
    answerer.answer(
      [prepared.question for prepared in usable],
      [prepared.prompt for prepared in usable],
      [prepared.images for prepared in usable],
      asked.max_new_tokens,
    )
  )
  return [next(answers) if prepared.error is None else prepared.error for prepared in chunk]


def _prepared_chunks(
  answerer: Answerer, asked: Asked, indices: Sequence[int]
) -> Iterator[list[_Prepared]]:
  """Yields chunks of questions in the form that is asked, with their images read."""
  size = answerer.per_call
  with ThreadPoolExecutor(_READER_THREADS) as pool:
    for begin in range(0, len(indices), size):
      chunk = [asked.questions[index] for index in indices[begin : begin + size]]
      # Questions about one image share one object, so that it is read and encoded once.
      by_image = {image: question for question in chunk for image in question.images}
      read = pool.map(functools.partial(_read_image, answerer), by_image.values(), by_image)
      images = dict(zip(by_image, read))
      yield [
        _prepare(answerer, asked, index, question, [images[image] for image in question.images])
        for index, question in zip(indices[begin:], chunk)
      ]


def _read_image(answerer: Answerer, question: Question, image: Path | bytes) -> Any:
  """Returns an image of a question, or the reason if it is unreadable (BadExample)."""
  try:
    return answerer.read_image(read_image(question.location or question.id, image))
  except BadExample as error:
    return error


def _prepare(
  answerer: Answerer, asked: Asked, index: int, question: Question, images: Sequence[Any]
) -> _Prepared:
  """Returns a question in the form that is asked, or with the reason why it cannot be."""
  for fault in (question.fault, *images):
    if isinstance(fault, BadExample):
      return _Prepared(index, question, error=fault)
  try:
    prompt = answerer.prompt(question, len(images), asked.prefix)
  except BadExample as error:
    return _Prepared(index, question, error=error)
  return _Prepared(index, question, prompt, images)
