"""Asks a model the questions of a benchmark, on every process of the run, and goes on where an earlier run stopped."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from sphinx_jax.core import prefetch
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.data.skips import Skips
from sphinx_jax.datasets import family as base
from sphinx_jax.evaluation import predictions
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question
from sphinx_jax.generate.model import Model
from sphinx_jax.parallel import hosts

_BATCHES = 4  # Decoded together; their prompts are sorted by length, and their pictures and the next ones' are in memory.
_READERS = 8  # Threads that read pictures.


class _Asked(NamedTuple):
  """A question as the model gets it; `trouble` where it cannot be asked."""

  question: Question
  ids: list[int]
  picture: np.ndarray | None
  trouble: BadExample | None


def answer(model: Model, benchmark: Benchmark, folder: predictions.Path, batch_size: int = 128) -> None:
  """Asks what is not answered yet, and leaves folder/NAME.jsonl with a line for each question, in their order.

  Each process of the run asks its share with its own copy of the weights, and process 0 joins what they wrote. A question
  that cannot be asked (unreadable picture, prompt too long) gets the answer '' and its reason under 'skipped', so that scores
  count it as wrong.

  Args:
    model: of this process's own devices.
    benchmark: the same on every process.
    folder: claimed for it (`predictions.claim`), seen by every process.
    batch_size: most prompts decoded together.

  Raises:
    SphinxError: most questions cannot be asked; files of another run; a disk that is full.
  """
  folder = epath.Path(folder)
  done = predictions.answered(folder, benchmark)
  hosts.barrier()  # All have read what was there before one of them writes.
  questions = [question for question in benchmark.questions if question.id not in done][
    hosts.process_index() :: hosts.process_count()
  ]
  if questions:
    _ask(
      model,
      benchmark,
      questions,
      predictions.Writer(folder / f'{benchmark.name}.{hosts.process_index()}.jsonl'),
      batch_size,
    )
  hosts.barrier()
  hosts.on_process_0(lambda: predictions.merge(folder, benchmark))


def _ask(
  model: Model,
  benchmark: Benchmark,
  questions: Sequence[Question],
  writer: predictions.Writer,
  batch_size: int,
) -> None:
  skips, total, position = Skips(Counter(), len(questions)), len(benchmark.questions), 0
  share = total // hosts.process_count()
  with (
    prefetch.Prefetch(_chunks(model, benchmark, questions, batch_size), depth=1) as chunks,
    Progress(total=share, start=share - len(questions), what=benchmark.name, unit='answers') as bar,
  ):
    for chunk in chunks:
      for asked in chunk:
        if asked.trouble is not None:
          skips.add(benchmark.name, position, asked.question.id, asked.trouble)
        position += 1
      usable = [asked for asked in chunk if asked.trouble is None]
      texts = iter(
        model.complete(
          [asked.ids for asked in usable],
          [asked.picture for asked in usable],
          max_new_tokens=benchmark.max_new_tokens,
          batch_size=batch_size,
        )
      )
      writer.write(
        [
          predictions.line(asked.question, next(texts))
          if asked.trouble is None
          else predictions.line(asked.question, '', asked.trouble.reason)
          for asked in chunk
        ]
      )
      bar.update(len(chunk))


def _chunks(
  model: Model, benchmark: Benchmark, questions: Sequence[Question], batch_size: int
) -> Iterator[list[_Asked]]:
  """Questions with ids and pictures read, as many at a time as are decoded by one call."""
  size = _BATCHES * batch_size
  with ThreadPoolExecutor(_READERS) as pool:
    for begin in range(0, len(questions), size):
      chunk = questions[begin : begin + size]
      different = {
        question.image: question for question in chunk if question.image is not None
      }  # One is encoded once.
      side = model.config.image_size
      read = dict(
        zip(different, pool.map(lambda question: _picture(question, side), different.values()))
      )
      yield [
        _asked(model, benchmark.prefix, question, read.get(question.image))
        for question in chunk
      ]


def _picture(question: Question, side: int) -> np.ndarray | BadExample:
  """uint8[side, side, 3], already as small as the model sees it: full pages would fill the memory."""
  try:
    return images.padded_resize(images.decode(base.read_image(question.id, question.image)), side)
  except BadExample as error:
    return error


def _asked(
  model: Model, prefix: str, question: Question, picture: np.ndarray | BadExample | None
) -> _Asked:
  text = model.template.render([(question.prompt, None)], open_ended=True) + prefix
  ids = model.tokenizer.encode(text, bos=True)
  if isinstance(picture, BadExample):
    return _Asked(question, ids, None, picture)
  length = len(ids) + (0 if picture is None else model.visual_tokens)
  if length >= model.max_length:
    return _Asked(
      question,
      ids,
      None,
      BadExample('prompt too long', f'{length} positions of {model.max_length}'),
    )
  return _Asked(question, ids, picture, None)
