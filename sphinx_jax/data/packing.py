"""Packs examples of different lengths into the rows of a batch (core/batch.py)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor

import numpy as np

from sphinx_jax.core import batch as batch_contract, errors
from sphinx_jax.data import slots as slots_lib
from sphinx_jax.data.record import BadExample, Unread

# Total weight of an example with n label tokens: proportional to n, sqrt(n) or 1. Answers have from
# one to hundreds of tokens, so with 'token' the long ones (poses, layouts) dominate the loss.
LOSS_WEIGHTING = {'token': 0.0, 'sqrt': 0.5, 'example': 1.0}
# An example with this many label tokens keeps weight 1 per token. For answers of 1 to 250 tokens
# the mean weight is then near 1.
_USUAL_ANSWER = 48
_SHARES = 8  # Parts of a slot in which patches are counted.


@dataclasses.dataclass(frozen=True)
class Example:
  """A tokenized example.

  Attributes:
    ids: int32[n], BOS first.
    weights: float32[n], weight of predicting each id.
    images: encoded files, or how to read them.
    images_at: for each slot of the images, the number of ids before it; None: one slot an image,
      behind BOS.
    task: index of the task in the mixture.
    id: shown in log lines.
    position: position in the global order of examples.
    mirrored: whether the images are flipped left to right.
    patches: patches of the images, where a row has a limit of them.
    rejected: of a preference pair, the example with the rejected answer. It shares the image slots
      of this one, and follows it in the row as a segment of its own.
  """

  ids: np.ndarray
  weights: np.ndarray
  images: tuple[bytes | Unread, ...]
  task: int
  images_at: tuple[int, ...] | None = None
  id: str = ''
  position: int = 0
  mirrored: bool = False
  patches: int = 0
  rejected: 'Example | None' = None

  def __post_init__(self) -> None:
    if self.images_at is None:
      object.__setattr__(self, 'images_at', (1,) * len(self.images))

  @property
  def segments(self) -> tuple['Example', ...]:
    """The example, and that of the rejected answer."""
    return (self, self.rejected) if self.rejected else (self,)

  def length(self, visual_tokens: int) -> int:
    """The number of positions that the example takes in a row."""
    return sum(len(each.ids) + len(each.images_at) * visual_tokens for each in self.segments)


def check_loss_weighting(loss_weighting: str) -> None:
  """Raises SphinxError unless the name is a rule of `LOSS_WEIGHTING`."""
  if loss_weighting not in LOSS_WEIGHTING:
    raise errors.unknown('loss weighting', loss_weighting, LOSS_WEIGHTING)


def weigh(weights: np.ndarray, loss_weighting: str) -> np.ndarray:
  """Scales the 0/1 label weights of an example, float32[n], by a rule of `LOSS_WEIGHTING`.

  Raises:
    SphinxError: an unknown rule.
  """
  check_loss_weighting(loss_weighting)
  labels = max(weights.sum(), 1.0)
  return weights * np.float32((_USUAL_ANSWER / labels) ** LOSS_WEIGHTING[loss_weighting])


def needs(
  examples: Sequence[Example], slots: int, patch_limit: int | None = None
) -> tuple[list[int], int]:
  """What each example takes of a row's image slots, and what the row has, for `plan`.

  With a limit of patches, the larger one of an example's shares of slots and of patches counts, in
  eighths of a slot, rounded up. So neither limit is exceeded.

  Args:
    examples: of a window.
    slots: image slots of a row (N).
    patch_limit: most patches of a row's images together; None: any number.

  Returns:
    What every example needs, and what a row has, in the same unit.
  """
  if not patch_limit:
    return [len(example.images_at) for example in examples], slots
  total = _SHARES * slots
  of_patches = (-(-example.patches * total // patch_limit) for example in examples)
  of_slots = (_SHARES * len(example.images_at) for example in examples)
  return list(map(max, of_patches, of_slots)), total


def plan(lengths: Sequence[int], needs: Sequence[int], seq_len: int, slots: int) -> list[list[int]]:
  """Packs a window of examples into rows.

  Each row begins with the longest remaining example and is filled as full as possible.

  Args:
    lengths: positions of each example, at most `seq_len`.
    needs: image slots of each example, at most `slots`.
    seq_len: positions of a row (T).
    slots: image slots of a row (N).

  Returns:
    The rows, each a sorted list of example numbers. Rows are in the order of their first example,
    so that what reaches a batch early does not depend on its length.
  """
  # Examples without an image fit into any row, so they fill what examples with images leave over.
  # Otherwise examples are taken in their order, which keeps the remaining examples as mixed as the
  # used ones. Taking short ones first would leave rows that cannot be filled.
  left = sorted(range(len(lengths)), key=lambda i: (not needs[i], i))
  longest = sorted(left, key=lambda i: -lengths[i])
  placed = np.zeros(len(lengths), bool)
  rows = []
  for first in longest:
    if placed[first]:
      continue
    placed[first] = True
    left = [i for i in left if not placed[i]]
    space, free_slots = seq_len - lengths[first], slots - int(needs[first])
    more = _fill(left, lengths, needs, space, free_slots)
    placed[more] = True
    rows.append(sorted([first, *more]))
  return sorted(rows)


def _fill(
  candidates: Sequence[int],
  lengths: Sequence[int],
  needs: Sequence[int],
  space: int,
  slots: int,
) -> list[int]:
  """Returns the candidates that fill `space` positions best with at most `slots` image slots.

  Among equally full choices, those with more slots win.

  This is a subset sum. Bit s of reachable[k] is set if some of the examples so far have k slots
  and s positions in total. Python's integers are the fastest bitsets at hand.
  """
  inside, full = (1 << space + 1) - 1, 1 << space
  reachable, steps = [1] + [0] * slots, []
  for i in candidates:
    n, needed = lengths[i], int(needs[i])
    if n > space or needed > slots:
      continue
    steps.append((i, reachable))
    taken = [sums << n & inside for sums in reachable]
    taken = [0] * needed + taken[: len(taken) - needed]
    reachable = [without | with_it for without, with_it in zip(reachable, taken)]
    if any(sums & full for sums in reachable):
      break
  used, count = max((sums.bit_length() - 1, k) for k, sums in enumerate(reachable))
  chosen = []
  for i, before in reversed(steps):
    if not before[count] >> used & 1:  # Not reachable without this one.
      chosen.append(i)
      used, count = used - lengths[i], count - int(needs[i])
  return chosen


def decode_images(
  rows: Sequence[Sequence[Example]],
  rule: slots_lib.Rule,
  pool: Executor | None = None,
  alpha: str = 'drop',
  note: Callable[[Example, str], None] = lambda example, phrase: None,
) -> Iterator[list[np.ndarray] | BadExample]:
  """Reads and decodes the images of all examples, row by row.

  Args:
    rows: the examples of each row.
    rule: how an image becomes slots.
    pool: decodes ahead of the caller: all work is submitted now.
    alpha: what happens to transparent pixels, see `images.decode`.
    note: called in threads of the pool with a phrase about an image, see `images.decode`.

  Returns:
    One item per example: the pixels of its slots, or the error of an unreadable image.
  """

  def decode(example: Example) -> list[np.ndarray] | BadExample:
    try:
      return [
        slot
        for image in example.images
        for slot in rule.read(
          image.read() if isinstance(image, Unread) else image,
          example.mirrored,
          alpha,
          functools.partial(note, example),
        ).pixels
      ]
    except BadExample as error:
      return error

  examples = [example for row in rows for example in row]
  return pool.map(decode, examples) if pool else map(decode, examples)


def assemble(
  rows: Sequence[Sequence[Example]],
  seq_len: int,
  slots: int,
  image_size: int,
  visual_tokens: int,
  report_bad: Callable[[Example, BadExample], None],
  pixels: Iterable[list[np.ndarray] | BadExample] | None = None,
) -> dict[str, np.ndarray]:
  """Builds a batch.

  Args:
    rows: the examples of each row (B), as chosen by `plan`. An empty row becomes padding.
    seq_len: positions of a row (T).
    slots: image slots of a row (N).
    image_size: edge of the image slots in pixels (Y = X).
    visual_tokens: visual tokens of one slot.
    report_bad: called with every example with an unreadable image. Its positions stay padding.
    pixels: result of `decode_images` for the rows. None: decode them here, to padded squares.

  Returns:
    The batch of core/batch.py.
  """
  spec = batch_contract.spec(len(rows), seq_len, slots, image_size)
  batch = {
    name: np.zeros(field.shape, field.dtype) for name, field in spec.items() if name != 'images'
  }
  # Most image slots are filled. Zeroing all of them first would take a tenth of the decoding time.
  batch['images'] = np.empty(spec['images'].shape, spec['images'].dtype)
  batch['visual_index'][:] = -1
  if pixels is None:
    pixels = decode_images(rows, slots_lib.Square(image_size))
  decoded = iter(pixels)
  for b, row in enumerate(rows):
    begin, segment, slot = 0, 0, 0
    for example in row:
      pixels = next(decoded)
      if isinstance(pixels, BadExample):
        report_bad(example, pixels)
        continue
      for each in example.segments:
        segment += 1
        begin = _write_example(batch, b, begin, segment, slot, each, visual_tokens)
      for pixels_of_slot in pixels:
        slots_lib.place(pixels_of_slot, batch['images'][b, slot], batch['image_size'][b, slot])
        slot += 1
    batch['images'][b, slot:] = 0
  return batch


def _write_example(
  batch: dict[str, np.ndarray],
  b: int,
  begin: int,
  segment: int,
  slot: int,
  example: Example,
  visual_tokens: int,
) -> int:
  """Writes an example into row `b` from position `begin` on; returns the position after its end."""
  tokens, visual_index = batch_contract.interleave(
    example.ids, example.images_at, visual_tokens, slot
  )
  end = begin + len(tokens)
  batch['tokens'][b, begin:end] = tokens
  batch['visual_index'][b, begin:end] = visual_index
  batch['positions'][b, begin:end] = np.arange(len(tokens))
  batch['segments'][b, begin:end] = segment
  batch['task'][b, begin:end] = example.task
  # Every id but BOS is predicted at the position before it.
  predicts = begin + np.flatnonzero(visual_index < 0)[1:] - 1
  batch['targets'][b, predicts] = example.ids[1:]
  batch['loss_weight'][b, predicts] = example.weights[1:]
  return end
