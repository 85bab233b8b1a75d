"""From sources to batches: sample, read, tokenise, pack, assemble; a pure function of (seed, position).

The global order of examples is cut in windows; the examples of a window are packed among themselves into at most
`window` rows. Rows have numbers, window * (number of the window) + (row in the window), and the data position is the
number of the next row to be used: one integer, the same for any number of hosts. Every host plans all rows, since rows
depend on lengths, but reads pixels only for its own.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sphinx_jax.core import errors, tensorflow as quiet_tensorflow
from sphinx_jax.core.prefetch import Prefetch
from sphinx_jax.data import mixture, packing, sampler
from sphinx_jax.data.dialog import Template
from sphinx_jax.data.packing import Example
from sphinx_jax.data.record import BadExample, Source
from sphinx_jax.data.skips import Skips
from sphinx_jax.data.tokenizer import Tokenizer

_CHUNK = 16  # examples a thread takes at once
_READY = 4  # finished batches kept
_AHEAD = 2  # batches whose pictures are being decoded


class Pipeline:
  """Batches of a task mixture.

  Args:
    sources: task name -> records. A source may have `too_long = 'cut_text'`: its examples lose the end of their text
      when a row cannot hold them, where others ('skip') are counted and left out. Visual tokens are never cut.
    weights: task name -> share.
    tokenizer, template: text -> ids and labels.
    batch: {size (B, of all hosts together), seq_len (T), images (N), window (examples packed together)}.
    visual_tokens: tokens of one image, start and end of every view included.
    image_size: pixels of the square images.
    seed: of the order.
    loss_weighting: a rule of `packing.LOSS_WEIGHTING`.
    mine: which rows of each batch this process assembles, ascending; None: all.
    threads: that read, tokenise and decode.
    sampling: {by, temperature, stages} or None, and caps: task name -> examples that count at most; see `mixture.make`.
    max_skipped: share of bad examples in a stretch of `skips.STRETCH` that ends a pass.

  Attributes:
    tasks: names; a batch's `task` indexes them.
    skipped: Counter of (task, reason), of this host.

  Raises:
    SphinxError: empty sources with weight, a row too short for an image, an unknown rule or setting.
  """

  def __init__(
    self,
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    tokenizer: Tokenizer,
    template: Template,
    batch: Mapping[str, int],
    visual_tokens: int,
    image_size: int,
    seed: int = 0,
    loss_weighting: str = 'token',
    mine: Sequence[int] | None = None,
    threads: int = 2,
    sampling: Mapping[str, Any] | None = None,
    caps: Mapping[str, float] | None = None,
    max_skipped: float = 0.5,
  ):
    self.tasks = tuple(sources)
    self._sources = tuple(sources[name] for name in self.tasks)
    self._tokenizer, self._template = tokenizer, template
    self._rows, self._length, self._slots = batch['size'], batch['seq_len'], batch['images']
    self._window = batch['window']
    self._visual_tokens, self._size = visual_tokens, image_size
    self._loss_weighting = loss_weighting
    self._mine, self._threads = tuple(range(self._rows)) if mine is None else tuple(mine), threads
    self.skipped: Counter = Counter()
    self._max_skipped = max_skipped
    self._check()
    self._sampling = mixture.make(sources, weights, seed, sampling, caps, self._measure, threads)

  def _check(self) -> None:
    if not 0 <= self._max_skipped <= 1:
      raise errors.make('max_skipped', f'{self._max_skipped:g}', 'a share in [0, 1]', 'correct it')
    packing.weigh(np.ones(1, np.float32), self._loss_weighting)
    if self._slots and self._length <= self._visual_tokens + 1:
      raise errors.make(
        'batch.seq_len',
        f'{self._length} positions',
        f'more than BOS and an image of {self._visual_tokens}',
        'raise batch.seq_len',
      )

  def batches(self, position: int = 0, examples: int | None = None) -> Prefetch:
    """Iterates over (batch, position of the next batch).

    Args:
      position: where to start; any position that came out before, or 0.
      examples: None for an endless stream. A number ends it after exactly these first examples of the global order,
        whatever `position` is; the last batch is filled with empty rows.

    Returns:
      An iterator with `close()`; a batch is as in core/batch.py, of this host's rows.

    Raises:
      SphinxError (while iterating): more than `max_skipped` of a stretch of examples are bad.
    """
    quiet_tensorflow.load()  # Here and not in the thread, because it touches stderr.
    skips = Skips(self.skipped, examples, self._max_skipped)
    return Prefetch(self._batches(position, examples, skips), _READY)

  def table(self, position: int = 0) -> str:
    """The mixture as text, with the epochs before the data position `position`."""
    return self._sampling.table(position // self._window * self._window)

  def summary(self, position: int) -> str:
    """The table at a data position, and what this host has left out so far, of examples and of their boxes."""
    lines = [
      f'skipped {number} examples of {task}: {reason}'
      for (task, reason), number in self.skipped.items()
    ]
    lines += [
      f'left out in examples of {task}: {number} times {reason}'
      for (task, reason), number in self.dropped().items()
    ]
    return '\n'.join([self.table(position), *lines])

  def dropped(self) -> Counter:
    """(task, reason) -> number of boxes and keypoints that sources have left out of examples."""
    return Counter(
      {
        (task, reason): number
        for task, source in zip(self.tasks, self._sources)
        for reason, number in source.dropped.items()
      }
    )

  def _batches(
    self, position: int, examples: int | None, skips: Skips
  ) -> Iterator[tuple[dict, int]]:
    pool = ThreadPoolExecutor(self._threads, thread_name_prefix='sphinx_jax read')
    windows = Prefetch(self._windows(position // self._window, examples, pool, skips), 1)
    begun = deque()  # Pictures of the next batch are decoded while this one is put together.
    try:
      for rows, number in self._grouped(windows, position):
        mine = [rows[row] for row in self._mine]
        begun.append((mine, packing.decode(mine, self._size, pool), number))
        if len(begun) == _AHEAD:
          yield self._assemble(*begun.popleft(), skips)
      while begun:
        yield self._assemble(*begun.popleft(), skips)
    finally:
      windows.close()
      pool.shutdown(wait=False, cancel_futures=True)

  def _grouped(
    self, windows: Iterator[tuple[int, list[list[Example]]]], position: int
  ) -> Iterator[tuple[list[list[Example]], int]]:
    """(the rows of a batch, position of the next batch), from `position` on."""
    pending: list[list[Example]] = []
    number = position
    for window, rows in windows:
      begin = window * self._window
      for row, packed in enumerate(rows):
        if begin + row < position:
          continue
        pending.append(packed)
        number = begin + (row + 1 if row + 1 < len(rows) else self._window)
        if len(pending) == self._rows:
          yield pending, number
          pending = []
    if pending:
      yield pending + [[]] * (self._rows - len(pending)), number

  def _windows(
    self, first: int, examples: int | None, pool: ThreadPoolExecutor, skips: Skips
  ) -> Iterator[tuple[int, list[list[Example]]]]:
    """(number of the window, its rows)."""
    columns = sampler.dataset(
      self._sampling.mixture, self._window, first, examples
    ).as_numpy_iterator()
    for number, column in enumerate(columns, first):
      entries = list(zip(*(column[name].tolist() for name in sampler.COLUMNS)))
      chunks = [entries[i : i + _CHUNK] for i in range(0, len(entries), _CHUNK)]
      read = [
        example
        for chunk in pool.map(lambda chunk: [self._read(skips, *entry) for entry in chunk], chunks)
        for example in chunk
        if example is not None
      ]
      lengths = [example.length(self._visual_tokens) for example in read]
      rows = packing.plan(
        lengths, [example.image is not None for example in read], self._length, self._slots
      )
      yield number, [[read[i] for i in row] for row in rows]

  def _read(self, skips: Skips, position: int, task: int, index: int, epoch: int) -> Example | None:
    """An example, or None if it is bad."""
    name, source = f'example {index}', self._sources[task]
    try:
      record = source.read(index, epoch)
      name = record.id
      return self._example(record, position, task)
    except BadExample as error:
      skips.add(self.tasks[task], position, name, error)
      return None

  def _measure(self, task: int, index: int) -> int:
    """Positions that an example takes. Raises BadExample."""
    return self._example(self._sources[task][index], 0, task).length(self._visual_tokens)

  def _example(self, record: Any, position: int, task: int) -> Example:
    if not record.turns or not all(answer.strip() for _, answer in record.turns):
      raise BadExample('empty answer', 'an answer is empty' if record.turns else 'no turns')
    if record.image is not None and not self._slots:
      raise BadExample('no image slot', 'it has an image, but batch.images is 0')
    try:
      ''.join(text for turn in record.turns for text in turn if text is not None).encode()
    except (
      UnicodeEncodeError
    ) as error:  # Half of a surrogate pair, which JSON may hold and no tokenizer takes.
      raise BadExample('not unicode', str(error)) from error
    ids, weights = self._template.encode(record.turns, self._tokenizer)
    trained = np.flatnonzero(weights)
    room = self._length - (self._visual_tokens if record.image is not None else 0)
    keep = (
      int(trained[-1]) + 1
    )  # What follows the last label (EOS) is never a label and nothing sees it.
    if keep > room:
      if self._sources[task].too_long != 'cut_text':
        raise BadExample(
          'too long', f'{keep - room} more than the {self._length} positions of a row'
        )
      keep = room
      if trained[0] >= keep:
        raise BadExample('too long', f'no answer begins in the {self._length} positions of a row')
    weights = packing.weigh(weights[:keep], self._loss_weighting)
    return Example(
      np.asarray(ids[:keep], np.int32),
      weights,
      record.image,
      task,
      record.id,
      position,
      record.mirrored,
    )

  def _assemble(
    self, rows: list[list[Example]], pixels: Iterator, number: int, skips: Skips
  ) -> tuple[dict, int]:
    def bad(example: Example, error: BadExample) -> None:
      # This host sees the pixels of its own rows alone.
      skips.add(
        self.tasks[example.task], example.position, example.id, error, self._rows / len(rows)
      )

    return packing.assemble(
      rows, self._length, self._slots, self._size, self._visual_tokens, bad, pixels
    ), number
