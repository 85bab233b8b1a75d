"""Sources -> batches: sample, read, tokenize, pack, assemble.

Batches are a pure function of (seed, position). The global order of examples is cut into windows.
The examples of a window are packed among themselves into at most `window` rows. Row r of window w
has the number w * window + r, and the data position is the number of the next row to use: one
integer, the same for any number of hosts. Every host plans all rows, because rows depend on the
lengths of examples, but reads and decodes images only for its own, where lengths do not need them.
"""

import contextlib
import dataclasses
import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.core.prefetch import Prefetch
from sphinx_jax.data import images, packing, sampler, slots as slots_lib
from sphinx_jax.data.dialog import Template
from sphinx_jax.data.mixture import Stages, make_sampling
from sphinx_jax.data.packing import Example
from sphinx_jax.data.record import MARK, BadExample, Record, Source, Unread, check_unicode
from sphinx_jax.data.skips import Skips
from sphinx_jax.data.tokenizer import Tokenizer

_CHUNK = 16  # Examples that a thread reads at once.
_CHECKED = 64  # Examples of each source that are read before training if images cannot be used.
_READY_BATCHES = 4  # Finished batches to keep ready.
_DECODING_BATCHES = 2  # Batches whose images are being decoded.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
  """Shapes of the batches, and the rules that examples follow.

  Attributes:
    batch_size: rows of a batch on all hosts together (B).
    seq_len: positions of a row (T).
    slots: image slots of a row (N).
    window: examples that are packed together.
    visual_tokens: visual tokens of one slot, start and end tokens of every view included.
    image_size: edge of the image slots in pixels.
    slot_rule: how an image becomes slots; None: a padded square.
    max_length: most positions of an example, of which the model may take fewer than a row has;
      None: a whole row.
    patch_limit: most patches of all images of a row, and a function of rows and columns of pixels
      that returns those of a slot; None: any number.
    seed: seed of the order of examples.
    loss_weighting: a rule of `packing.LOSS_WEIGHTING`.
    max_skipped: share of bad examples, in a stretch of `skips.STRETCH`, above which a pass stops.
    alpha: what happens to transparent pixels, a key of `images.ALPHA`.
    pairs: whether all records are preference pairs. Each answer of a pair may take half of a row.
    threads: threads that read, tokenize and decode.

  Raises:
    SphinxError: a row too short for an image, an unknown rule or `alpha`, a share outside [0, 1].
  """

  batch_size: int
  seq_len: int
  slots: int
  window: int
  visual_tokens: int
  image_size: int
  seed: int = 0
  loss_weighting: str = 'token'
  max_skipped: float = 0.5
  alpha: str = 'drop'
  slot_rule: slots_lib.Rule | None = None
  max_length: int | None = None
  patch_limit: tuple[int, Callable[[int, int], int]] | None = None
  pairs: bool = False
  threads: int = 2

  @property
  def longest(self) -> int:
    """Most positions of a segment."""
    space = self.seq_len // 2 if self.pairs else self.seq_len
    return min(space, self.max_length or space)

  @property
  def rule(self) -> slots_lib.Rule:
    """How an image becomes slots."""
    return self.slot_rule or slots_lib.Square(self.image_size)

  def __post_init__(self) -> None:
    if not 0 <= self.max_skipped <= 1:
      raise errors.make('max_skipped', f'{self.max_skipped:g}', 'a share in [0, 1]', 'correct it')
    if self.alpha not in images.ALPHA:
      raise errors.unknown('image.alpha', self.alpha, images.ALPHA)
    packing.check_loss_weighting(self.loss_weighting)
    if self.slots and self.longest <= self.visual_tokens + 1:
      raise errors.make(
        'batch.seq_len',
        f'{self.longest} positions',
        f'more than BOS and an image of {self.visual_tokens}',
        'raise batch.seq_len, or model.llm.max_length if that is smaller',
      )


class _Decoding(NamedTuple):
  """A batch whose images are being decoded.

  Attributes:
    rows: this host's rows of the batch.
    pixels: the images of their examples, see `packing.decode_images`.
    next_position: data position after the batch.
  """

  rows: list[list[Example]]
  pixels: Iterator[list[np.ndarray] | BadExample]
  next_position: int


class Pipeline:
  """Batches of a task mixture.

  Args:
    sources: task name -> records.
    weights: task name -> weight.
    tokenizer: tokenizer of the model.
    template: dialog template, which turns records into ids and labels.
    config: shapes and rules.
    local_rows: the rows of each batch that this process assembles, ascending. None: all.
    sampling: {by, temperature, stages, learned} or None, see `mixture.make_sampling`.
    caps: task name -> largest number of examples that counts, see `mixture.make_sampling`.

  Attributes:
    tasks: task names. A batch's `task` indexes them.
    skipped: Counter of (task, reason), of this host.
    noted: Counter of (task, phrase) that describes used images, of this host.

  Raises:
    SphinxError: a task with weight but no examples, an unknown sampling setting, preference pairs
      among other examples, or images for a model without encoders.
  """

  def __init__(
    self,
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    tokenizer: Tokenizer,
    template: Template,
    config: PipelineConfig,
    *,
    local_rows: Sequence[int] | None = None,
    sampling: Mapping[str, Any] | None = None,
    caps: Mapping[str, float] | None = None,
  ) -> None:
    self.tasks = tuple(sources)
    self.skipped: Counter = Counter()
    self.noted: Counter = Counter()
    self._note_lock = threading.Lock()
    self._sources = tuple(sources.values())
    self._tokenizer = tokenizer
    self._template = template
    self._config = config
    self._local_rows = tuple(range(config.batch_size) if local_rows is None else local_rows)
    self._check_pairs()
    self._make_sampling = functools.partial(
      make_sampling,
      sources,
      weights,
      config.seed,
      caps=caps,
      measure=self._measure,
      threads=config.threads,
    )
    self._settings = dict(sampling or {})
    self._sampling = self._make_sampling(self._settings)
    if not config.visual_tokens:
      self._check_text_only()

  def set_stages(self, stages: Stages) -> None:
    """Sets the weights from positions of the order of examples on, for iterators made after it.

    An iterator may have read beyond the first position: close it, and make one where it ended.
    Unusable examples that it has read ahead are counted again.

    Args:
      stages: take the place of `stages` in the settings of the sampling.
    """
    self._sampling = self._make_sampling({**self._settings, 'stages': stages})

  def batches(self, position: int = 0, examples: int | None = None) -> Prefetch:
    """Iterates over (batch, position of the next batch).

    Args:
      position: where to start: 0, or any position that was returned before.
      examples: None for an endless stream. Otherwise the pass ends after exactly the first
        `examples` of the global order, for any `position`, and the last batch is filled with empty
        rows.

    Returns:
      An iterator with `close()`. A batch is as in core/batch.py, with this host's rows.

    Raises:
      SphinxError: (while iterating) more than `max_skipped` of a stretch of examples are bad.
    """
    # A finite pass ends by itself, also if all of it is bad.
    sizes = dict(zip(self.tasks, self._sampling.mixture.sizes)) if examples is None else None
    skips = Skips(self.skipped, examples, self._config.max_skipped, sizes)
    return Prefetch(self._batches(position, examples, skips), _READY_BATCHES)

  def table(self, position: int = 0) -> str:
    """The mixture as text, with the epochs before the data position `position`."""
    window = self._config.window
    return self._sampling.table(position // window * window)

  def summary(self, position: int) -> str:
    """The mixture as text, and what this host has skipped, dropped or noted so far."""
    lines = [self.table(position)]
    for (task, reason), number in self.skipped.items():
      lines.append(f'skipped {number} examples of {task}: {reason}')
    for (task, reason), number in self.dropped().items():
      lines.append(f'left out in examples of {task}: {number} times {reason}')
    for (task, phrase), number in self.noted.items():
      lines.append(f'used {number} images of {task} with {phrase}')
    return '\n'.join(lines)

  def dropped(self) -> Counter:
    """(task, reason) -> number of boxes and keypoints that sources have dropped from examples."""
    dropped = Counter()
    for task, source in zip(self.tasks, self._sources):
      for reason, number in source.dropped.items():
        dropped[task, reason] = number
    return dropped

  def _note(self, example: Example, phrase: str) -> None:
    with self._note_lock:
      self.noted[self.tasks[example.task], phrase] += 1

  def _batches(
    self, position: int, examples: int | None, skips: Skips
  ) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yields (batch, next position); decodes the images of one batch ahead."""
    config = self._config
    pool = ThreadPoolExecutor(config.threads, thread_name_prefix='sphinx_jax read')
    windows = Prefetch(self._windows(position // config.window, examples, pool, skips), 1)
    decoding: deque[_Decoding] = deque()
    try:
      for rows, next_position in self._group_rows(windows, position):
        local = [rows[row] for row in self._local_rows]
        pixels = packing.decode_images(local, config.rule, pool, config.alpha, self._note)
        decoding.append(_Decoding(local, pixels, next_position))
        if len(decoding) == _DECODING_BATCHES:
          yield self._assemble(decoding.popleft(), skips)
      while decoding:
        yield self._assemble(decoding.popleft(), skips)
    finally:
      windows.close()
      pool.shutdown(wait=False, cancel_futures=True)

  def _group_rows(
    self, windows: Iterator[tuple[int, list[list[Example]]]], position: int
  ) -> Iterator[tuple[list[list[Example]], int]]:
    """Yields (rows of a batch, position of the next batch), from `position` on."""
    batch_size, window_size = self._config.batch_size, self._config.window
    rows: list[list[Example]] = []
    next_position = position
    for window, window_rows in windows:
      begin = window * window_size
      for row, packed in enumerate(window_rows):
        if begin + row < position:
          continue
        rows.append(packed)
        last = row + 1 == len(window_rows)
        next_position = begin + (window_size if last else row + 1)
        if len(rows) == batch_size:
          yield rows, next_position
          rows = []
    if rows:
      yield rows + [[]] * (batch_size - len(rows)), next_position

  def _windows(
    self, first: int, examples: int | None, pool: ThreadPoolExecutor, skips: Skips
  ) -> Iterator[tuple[int, list[list[Example]]]]:
    """Yields (number of the window, its packed rows), from window `first` on."""
    config = self._config
    dataset = sampler.make_dataset(self._sampling.mixture, config.window, first, examples)

    def read(entries: list[tuple[int, int, int, int]]) -> list[Example | None]:
      return [self._read(skips, *entry) for entry in entries]

    for window, columns in enumerate(dataset.as_numpy_iterator(), first):
      entries = list(zip(*(columns[name].tolist() for name in sampler.COLUMNS)))
      chunks = [entries[i : i + _CHUNK] for i in range(0, len(entries), _CHUNK)]
      examples_read = []
      for chunk in pool.map(read, chunks):
        examples_read += [example for example in chunk if example is not None]
      limit = config.patch_limit and config.patch_limit[0]
      needs, slots = packing.needs(examples_read, config.slots, limit)
      lengths = [example.length(config.visual_tokens) for example in examples_read]
      rows = packing.plan(lengths, needs, config.seq_len, slots)
      yield window, [[examples_read[i] for i in row] for row in rows]

  def _read(self, skips: Skips, position: int, task: int, index: int, epoch: int) -> Example | None:
    """Reads and tokenizes an example; reports a bad one and returns None."""
    source, name = self._sources[task], f'example {index}'
    try:
      record = source.outline(index, epoch)
      name = record.id
      example = self._tokenize(record, task, position)
    except BadExample as error:
      skips.add(self.tasks[task], position, name, error, index=index)
      return None
    if not example.images:
      skips.used(self.tasks[task])
    return example

  def _check_pairs(self) -> None:
    """Raises SphinxError if a source has pairs in a run without a preference, or the reverse."""
    kinds = {True: 'preference pairs', False: 'conversations'}
    expected = self._config.pairs
    for task, source in zip(self.tasks, self._sources):
      if source.pairs != expected:
        raise errors.make(
          f"task '{task}'",
          f"{kinds[source.pairs]} ('{source.name}')",
          f'{kinds[expected]}, because the run has {"a" if expected else "no"} section preference',
          'take --config=forkme:FILE,DIR,dpo for pairs, and only for them',
        )

  def _check_text_only(self) -> None:
    """Raises SphinxError if some examples, spread over a source, have images.

    `_tokenize` checks all of them, but some only after days of training.
    """
    stages = self._sampling.mixture.stages
    for task, size in enumerate(self._sampling.mixture.sizes):
      is_used = any(counts[task] for _, _, counts in stages)
      for index in range(0, size if is_used else 0, max(size // _CHECKED, 1)):
        with contextlib.suppress(BadExample):
          self._measure(task, index)

  def _measure(self, task: int, index: int) -> int:
    """The number of positions that an example takes. Raises BadExample."""
    example = self._tokenize(self._sources[task].outline(index, 0), task, position=0)
    return example.length(self._config.visual_tokens)

  def _tokenize(self, record: Record, task: int, position: int) -> Example:
    """Turns a record into an example that fits into a row.

    Raises:
      BadExample: the record cannot be trained on. This is the only check of records. Unreadable
        images are found later, by `packing.decode_images`.
      SphinxError: the record has an image, and the model has no encoder.
    """
    config = self._config
    if not record.turns:
      raise BadExample('empty answer', 'no turns')
    answers = [answer for _, answer in record.turns]
    answers += [record.rejected] if self._config.pairs else []
    if not all(answer.strip() for answer in answers):
      raise BadExample('empty answer', 'an answer is empty')
    if record.images and not config.visual_tokens:
      raise errors.make(
        f"task '{self.tasks[task]}'",
        f"an image ('{record.id}')",
        'examples without images, because the model has no encoder',
        'start from a checkpoint with encoders, or leave out the examples with images',
      )
    slots = [config.rule.count] * len(record.images)
    if sum(slots) > config.slots:
      raise BadExample(
        'no image slot',
        f'{len(slots)} images take {sum(slots)} slots, but batch.images is {config.slots}'
        ' (raise it: --config.batch.images)',
      )
    patches = self._patches(record.images)
    check_unicode([*(text for turn in record.turns for text in turn), record.rejected])
    marks = self._template.count_marks(record.turns, len(slots), record.marks)
    if marks not in (None, 0, len(slots)):
      raise BadExample('image marks', f'{len(slots)} images and {marks} {MARK} marks')

    def encode(turns: Sequence[tuple[str | None, str]]) -> Example:
      ids, weights, images_at = self._template.encode(turns, self._tokenizer, slots, record.marks)
      if config.pairs:
        weights = _of_last_answer(weights)
      space = config.longest - len(images_at) * config.visual_tokens
      kept = self._kept_ids(weights, space, self._sources[task].too_long)
      return Example(
        ids=np.asarray(ids[:kept], np.int32),
        weights=packing.weigh(weights[:kept], config.loss_weighting),
        images=record.images,
        images_at=images_at,
        task=task,
        id=record.id,
        position=position,
        mirrored=record.mirrored,
        patches=patches,
      )

    example = encode(record.turns)
    if not config.pairs:
      return example
    *before, (question, _) = record.turns
    return dataclasses.replace(example, rejected=encode([*before, (question, record.rejected)]))

  def _patches(self, files: Sequence[bytes | Unread]) -> int:
    """The patches of images, from their headers; 0 without a limit.

    Raises:
      BadExample: an unreadable image, or more patches than a row has.
    """
    config = self._config
    if config.patch_limit is None:
      return 0
    limit, count = config.patch_limit
    total = 0
    for file in files:
      size = file.size() if isinstance(file, Unread) else images.size(file)
      # An EXIF orientation can exchange the edges, which moves roundings by a pixel.
      ways = (config.rule.sizes(*edges) for edges in (size, size[::-1]))
      total += max(sum(count(height, width) for width, height in slots) for slots in ways)
    if total > limit:
      raise BadExample(
        'too many patches',
        f'{len(files)} images have {total}, but model.vision.patches_per_row is {limit}',
      )
    return total

  def _kept_ids(self, weights: np.ndarray, space: int, too_long: str) -> int:
    """The number of ids of an example to keep. Visual tokens are never cut.

    Args:
      weights: float32[n], label weights of the ids.
      space: positions of the example that are free for ids.
      too_long: policy for an example that does not fit: 'skip' it, or 'cut_text' at its end.

    Raises:
      BadExample: the example does not fit, or no label is left of it.
    """
    labels = np.flatnonzero(weights)
    needed = int(labels[-1]) + 1  # EOS, after the last label, is no label and predicts nothing.
    if needed <= space:
      return needed
    longest = self._config.longest
    if too_long != 'cut_text':
      raise BadExample(
        'too long', f'{needed - space} more than the {longest} positions that it may take'
      )
    if labels[0] >= space:
      raise BadExample('too long', f'no answer begins in the {longest} positions that it may take')
    return space

  def _assemble(self, batch: _Decoding, skips: Skips) -> tuple[dict[str, np.ndarray], int]:
    """Returns (batch, next position)."""
    config = self._config
    bad: set[int] = set()  # Positions.

    def report_bad(example: Example, error: BadExample) -> None:
      # This host decodes only its share of the images, so a bad one stands for those of all hosts.
      stands_for = config.batch_size / len(batch.rows)
      bad.add(example.position)
      _, (index,), _ = self._sampling.mixture.lookup(np.array([example.position]))
      skips.add(
        self.tasks[example.task], example.position, example.id, error, stands_for, int(index)
      )

    assembled = packing.assemble(
      batch.rows,
      config.seq_len,
      config.slots,
      config.image_size,
      config.visual_tokens,
      report_bad,
      batch.pixels,
    )
    for task in {e.task for row in batch.rows for e in row if e.position not in bad}:
      skips.used(self.tasks[task])
    return assembled, batch.next_position


def _of_last_answer(weights: np.ndarray) -> np.ndarray:
  """The label weights float32[n] of a dialog without those before its last answer."""
  labels = np.flatnonzero(weights)
  (gaps,) = np.nonzero(np.diff(labels) > 1)
  begin = labels[gaps[-1] + 1] if len(gaps) else 0
  return np.where(np.arange(len(weights)) < begin, np.float32(0), weights)
