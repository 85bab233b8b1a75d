"""Examples of different lengths -> full rows of the batch contract (core/batch.py)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor

import numpy as np

from sphinx_jax.core import batch as contract, errors
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample

# How much an example's n trained tokens weigh together: n, sqrt(n) or 1 (times a constant). Answers go from one token to
# hundreds, so with 'token' the long ones (poses, layouts) decide nearly everything.
LOSS_WEIGHTING = {'token': 0.0, 'sqrt': 0.5, 'example': 1.0}
# An example of this many trained tokens keeps weight 1 a token; near the mean weight of 1 for answers of 1 to 250 tokens.
_USUAL_ANSWER = 48


@dataclasses.dataclass(frozen=True)
class Example:
  """A tokenised example.

  Attributes:
    ids: int32[n], BOS first.
    weights: float32[n], weight of predicting each id.
    image: encoded file, or None; its visual tokens stand between BOS and the text.
    task: index of the task in the mixture.
    id: for log lines.
    position: in the global order of examples.
    mirrored: whether the picture is shown left for right.
  """

  ids: np.ndarray
  weights: np.ndarray
  image: bytes | None
  task: int
  id: str = ''
  position: int = 0
  mirrored: bool = False

  def length(self, visual_tokens: int) -> int:
    """Positions that the example takes in a row."""
    return len(self.ids) + (visual_tokens if self.image is not None else 0)


def weigh(weights: np.ndarray, loss_weighting: str) -> np.ndarray:
  """Scales an example's 0/1 label weights float32[n] by a rule of `LOSS_WEIGHTING`.

  Raises:
    SphinxError: an unknown rule.
  """
  if loss_weighting not in LOSS_WEIGHTING:
    raise errors.unknown('loss weighting', loss_weighting, LOSS_WEIGHTING)
  return weights * np.float32(
    (_USUAL_ANSWER / max(weights.sum(), 1.0)) ** LOSS_WEIGHTING[loss_weighting]
  )


def plan(
  lengths: Sequence[int], has_image: Sequence[bool], length: int, images: int
) -> list[list[int]]:
  """Packs a window of examples into rows: each begins with the longest that is left and is filled as full as can be.

  Args:
    lengths: positions of each example, none above `length`.
    has_image: whether it needs one of the row's image slots.
    length: positions of a row (T).
    images: image slots of a row (N).

  Returns:
    The rows, each a list of example numbers in their order; rows in the order of their first example, so that what
    reaches a batch early does not depend on its length.
  """
  # Text alone goes into any row, so it is kept for what images leave; otherwise examples are taken as they come, which
  # keeps the kinds that are left as mixed as those that are used. Short ones alone would not fill rows.
  left = sorted(range(len(lengths)), key=lambda i: (not has_image[i], i))
  longest = sorted(left, key=lambda i: -lengths[i])
  placed = np.zeros(len(lengths), bool)
  rows = []
  for first in longest:
    if placed[first]:
      continue
    placed[first] = True
    left = [i for i in left if not placed[i]]
    more = _fill(left, lengths, has_image, length - lengths[first], images - bool(has_image[first]))
    placed[more] = True
    rows.append(sorted([first, *more]))
  return sorted(rows)


def _fill(
  candidates: Sequence[int],
  lengths: Sequence[int],
  has_image: Sequence[bool],
  space: int,
  images: int,
) -> list[int]:
  """The examples that fill `space` positions best with at most so many images; of equal ones, those with more images.

  A subset sum: bit s of reachable[k] says that some of the examples so far have k images and s positions together. Python's
  integers are the fastest bitsets at hand.
  """
  inside, full = (1 << space + 1) - 1, 1 << space
  reachable, steps = [1] + [0] * images, []
  for i in candidates:
    n = lengths[i]
    if n > space or (has_image[i] and not images):
      continue
    steps.append((i, reachable))
    taken = [sums << n & inside for sums in reachable]
    if has_image[i]:
      taken = [0, *taken[:-1]]
    reachable = [without | with_it for without, with_it in zip(reachable, taken)]
    if any(sums & full for sums in reachable):
      break
  used, count = max((sums.bit_length() - 1, k) for k, sums in enumerate(reachable))
  chosen = []
  for i, before in reversed(steps):
    if not before[count] >> used & 1:  # Only with this one.
      chosen.append(i)
      used, count = used - lengths[i], count - bool(has_image[i])
  return chosen


def decode(
  rows: Sequence[Sequence[Example]], size: int, pool: Executor | None = None
) -> Iterator[np.ndarray | BadExample | None]:
  """The pixels of every example, uint8[size,size,3], row by row; None where it has no image, the error of a bad one.

  With a pool they are read ahead: the work is handed over at once, the results come as they are asked for.
  """

  def pixels(example: Example) -> np.ndarray | BadExample | None:
    try:
      return None if example.image is None else images.square(example.image, size, example.mirrored)
    except BadExample as error:
      return error

  return iter((pool.map if pool else map)(pixels, [example for row in rows for example in row]))


def assemble(
  rows: Sequence[Sequence[Example]],
  length: int,
  slots: int,
  size: int,
  visual_tokens: int,
  bad: Callable[[Example, BadExample], None],
  pixels: Iterable[np.ndarray | BadExample | None] | None = None,
) -> dict[str, np.ndarray]:
  """Builds a batch.

  Args:
    rows: the examples of each row (B), as `plan` chose them; an empty row becomes padding.
    length: positions of a row (T).
    slots: image slots of a row (N).
    size: pixels of the square images (Y = X).
    visual_tokens: tokens of one image.
    bad: told of every example whose image cannot be read; its place in the row stays padding.
    pixels: what `decode` gives for the rows, where it was begun before.

  Returns:
    The batch of core/batch.py.
  """
  spec = contract.spec(len(rows), length, slots, size)
  # Most image slots are filled: zeros for all of them would take a tenth of the time of their pictures.
  batch = {
    name: (np.empty if name == 'images' else np.zeros)(of.shape, of.dtype)
    for name, of in spec.items()
  }
  batch['visual_index'][:] = -1
  read = iter(decode(rows, size) if pixels is None else pixels)
  for b, row in enumerate(rows):
    begin, segment, slot = 0, 0, 0
    for example in row:
      image = next(read)
      if isinstance(image, BadExample):
        bad(example, image)
        continue
      segment += 1
      if image is not None:
        batch['images'][b, slot] = image
      begin = _place(batch, b, begin, segment, slot, example, visual_tokens)
      slot += image is not None
    batch['images'][b, slot:] = 0
  return batch


def _place(
  batch: dict[str, np.ndarray],
  b: int,
  begin: int,
  segment: int,
  slot: int,
  example: Example,
  visual_tokens: int,
) -> int:
  """Writes an example into row b from `begin` on; returns its end. BOS, then visual tokens, then text."""
  end = begin + example.length(visual_tokens)
  text = end - len(example.ids) + 1  # where the ids after BOS begin
  tokens, weights = batch['tokens'][b], batch['loss_weight'][b]
  tokens[begin], tokens[text:end] = example.ids[0], example.ids[1:]
  batch['targets'][b, text - 1 : end - 1] = example.ids[1:]
  weights[text - 1 : end - 1] = example.weights[1:]
  batch['positions'][b, begin:end] = np.arange(end - begin)
  batch['segments'][b, begin:end] = segment
  batch['task'][b, begin:end] = example.task
  batch['visual_index'][b, begin + 1 : text] = np.arange(
    slot * visual_tokens, slot * visual_tokens + text - begin - 1
  )
  return end


def useful(batch: dict[str, np.ndarray]) -> float:
  """Share of positions that are not padding."""
  return float(np.mean(np.asarray(batch['segments']) > 0))
