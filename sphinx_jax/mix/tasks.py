"""The mix of tasks: which example of which task stands at a position of the endless training stream.

SPHINX tunes many vision-language tasks jointly. Here the mixture is a law, not a queue: task and example are a pure
function of (seed, position). So a run starts at any position at once, any number of hosts agree without talking, and
nothing is held in memory, whatever the size of the data.
"""

from collections.abc import Sequence

import numpy as np

from sphinx_jax.core import errors

_ROUNDS = 8  # Four rounds make a Feistel network pseudorandom; more, because halves of small domains have few bits.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = np.arange(_ROUNDS, dtype=np.uint64) * _GOLDEN


RULES = ('examples', 'tokens', 'temperature')


def shares(
  rule: str,
  weights: Sequence[float],
  sizes: Sequence[int],
  tokens: Sequence[float] | None = None,
  temperature: float = 1.0,
  caps: Sequence[float | None] | None = None,
  names: Sequence[str] | None = None,
) -> tuple[float, ...]:
  """What share of the examples each task gets.

  Args:
    rule: what a weight is a share of. 'examples': of examples. 'tokens': of positions of rows, so that tasks with long
      examples get fewer of them. 'temperature': it multiplies min(size, cap) ** (1 / temperature), which is the mixing of
      T5 (arXiv 1910.10683, section 3.5.2): temperature 1 is proportional to the sizes, a high one equal for all.
    weights: of each task; 0 leaves it out.
    sizes: number of examples of each task.
    tokens: mean positions of an example of each task; for 'tokens'.
    temperature, caps: for 'temperature'; a cap is the most examples that count, None has no limit.
    names: of the tasks, for error messages.

  Returns:
    Shares that sum to 1, or all 0 where no task has weight.

  Raises:
    SphinxError: an unknown rule, a temperature or cap that is not positive.
  """
  if rule not in RULES:
    raise errors.unknown('sampling by', rule, RULES)
  _check_weights(weights, sizes, names or [str(i) for i in range(len(weights))])
  factors = np.ones(len(weights))
  if rule == 'tokens':
    factors = 1 / np.maximum(np.asarray(tokens, np.float64), 1.0)
  if rule == 'temperature':
    limits = [float('inf') if cap is None else float(cap) for cap in caps or [None] * len(weights)]
    if not 0 < temperature < float('inf') or not all(limit > 0 for limit in limits):
      raise errors.make(
        'sampling',
        f'temperature {temperature:g} and caps {limits}',
        'positive numbers',
        'correct sampling.temperature and the caps of the mixture',
      )
    factors = np.minimum(np.asarray(sizes, np.float64), limits) ** (1 / temperature)
  products = np.asarray(weights, np.float64) * factors
  return tuple(float(product) for product in products / (products.sum() or 1.0))


class Mixture:
  """The order of examples of several tasks.

  Positions are cut in blocks. Every block holds exactly `counts[i]` examples of task i, at places of its own choice. The
  examples of a task are numbered as they come, and each run of `sizes[i]` of them (an epoch) is a fresh permutation of
  the task's examples, so each epoch covers every example exactly once, and one ends before the next begins.

  Weights may change on the way: a stage begins with the first block at or after its position, and only the counts of
  blocks are other ones from there. A task's examples go on where they were, so epochs stay whole.

  Args:
    weights: share of each task; any scale, none negative. Weight 0 leaves a task out.
    sizes: number of examples of each task.
    seed: chooses the order.
    block: positions per block; shares are exact to one part in `block`.
    names: names of the tasks for error messages.
    stages: (position, weights) in ascending order: what holds from that position on.

  Attributes:
    stages: (position, weights, counts) of all stages, the first at 0; positions as they are in force.

  Raises:
    SphinxError: a negative or all-zero weight, tasks with weight but without examples, one whose share of a block is less
      than one example, stages out of order.
  """

  def __init__(
    self,
    weights: Sequence[float],
    sizes: Sequence[int],
    seed: int = 0,
    block: int = 1024,
    names: Sequence[str] | None = None,
    stages: Sequence[tuple[int, Sequence[float]]] = (),
  ):
    self.sizes = tuple(int(size) for size in sizes)
    self.seed, self.block = int(seed), int(block)
    self.names = tuple(names or (str(i) for i in range(len(weights))))
    changes = [(0, weights), *stages]
    self._begins = np.array(
      [-(-int(position) // self.block) for position, _ in changes], np.int64
    )  # in blocks
    if (np.diff(self._begins) <= 0).any():
      raise errors.make(
        'stages of the mixture',
        f'positions {[int(position) for position, _ in changes]}',
        f'rising ones after 0, each at least a block of {self.block} further',
        'correct the positions',
      )
    self.stages = tuple(
      (int(begin) * self.block, tuple(map(float, these)), self._counted(these))
      for begin, (_, these) in zip(self._begins, changes)
    )
    self.weights, self.counts = self.stages[0][1:]
    self._counts = np.array([counts for _, _, counts in self.stages], np.int64)
    # How many examples of each task come before each stage, and the task of each slot of its blocks before shuffling.
    done = np.diff(self._begins)[:, None] * self._counts[:-1]
    self._before = np.concatenate(
      [np.zeros((1, len(self.sizes)), np.int64), np.cumsum(done, axis=0)]
    )
    self._owners = np.stack(
      [np.repeat(np.arange(len(self.sizes)), counts) for counts in self._counts]
    )
    self._starts = np.cumsum(self._counts, axis=1) - self._counts

  def _counted(self, weights: Sequence[float]) -> tuple[int, ...]:
    """Examples of each task in a block."""
    _check_weights(weights, self.sizes, self.names)
    if not sum(weights) > 0:
      raise errors.make(
        'task mixture', 'only weights of 0', 'a task with weight', 'raise the weight of a task'
      )
    counts = _largest_remainder(weights, self.block)
    for name, weight, count in zip(self.names, weights, counts):
      if weight > 0 and count == 0:
        raise errors.make(
          f"task '{name}'",
          f'weight {weight:g}, less than one example in a block of {self.block}',
          'at least one',
          'raise the weight or the block, or set the weight to 0',
        )
    return counts

  def lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands at each position.

    Args:
      positions: int64[P], from 0 on, in any order.

    Returns:
      task int32[P], example int64[P] (index inside the task), epoch int64[P] (of that task, from 0).
    """
    block, offset = np.divmod(np.asarray(positions, np.int64), self.block)
    blocks, which = np.unique(block, return_inverse=True)
    tasks, ranks = self._order(blocks)
    task, rank = tasks[which, offset], ranks[which, offset]
    sizes = np.maximum(np.asarray(self.sizes, np.int64), 1)[task]
    epoch, index = np.divmod(self._seen(block, task) + rank, sizes)
    example = shuffle(index, sizes, _key(self.seed, task + 1, epoch))
    return task.astype(np.int32), example, epoch

  def _stage(self, block: np.ndarray | int) -> np.ndarray:
    return np.searchsorted(self._begins, block, side='right') - 1

  def _seen(self, block: np.ndarray | int, task: np.ndarray) -> np.ndarray:
    """How many examples of a task come before a block: int64, in the shape of both."""
    stage = self._stage(block)
    return self._before[stage, task] + (block - self._begins[stage]) * self._counts[stage, task]

  def _order(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The task at each place of some blocks, and how many of that task come before it there: int64[len(blocks), block]."""
    stage = self._stage(blocks)[:, None]
    key = np.repeat(_key(self.seed, 0, blocks), self.block)
    place = np.tile(np.arange(self.block), len(blocks))
    slot = shuffle(place, np.full_like(place, self.block), key).reshape(len(blocks), self.block)
    task = self._owners[stage, slot]
    by_task = np.argsort(task, axis=1, kind='stable')
    rank = np.empty_like(task)
    np.put_along_axis(
      rank,
      by_task,
      np.arange(self.block) - self._starts[stage, np.take_along_axis(task, by_task, 1)],
      1,
    )
    return task, rank

  def epochs(self, positions: int) -> tuple[float, ...]:
    """How often each task's examples were seen after so many positions (task without examples: 0)."""
    blocks, rest = divmod(int(positions), self.block)
    tasks, _, _ = self.lookup(np.arange(blocks * self.block, blocks * self.block + rest))
    seen = self._seen(blocks, np.arange(len(self.sizes))) + np.bincount(
      tasks, minlength=len(self.sizes)
    )
    return tuple(float(n / size) if size else 0.0 for n, size in zip(seen, self.sizes))


def _check_weights(weights: Sequence[float], sizes: Sequence[int], names: Sequence[str]) -> None:
  if not len(weights) or len(weights) != len(sizes):
    raise errors.make(
      'task mixture',
      f'{len(weights)} weights and {len(sizes)} sizes',
      'one of each for every task, at least one task',
      'check the mixture of the config',
    )
  for name, weight in zip(names, weights):
    if not 0 <= weight < float('inf'):
      raise errors.make(
        f"task '{name}'",
        f'weight {weight:g}',
        'a finite number of at least 0',
        'correct the weight',
      )
  empty = [
    f"task '{name}': got weight {weight:g} but {size} examples"
    for name, weight, size in zip(names, weights, sizes)
    if weight > 0 and size <= 0
  ]
  if empty:
    raise errors.SphinxError(
      '; '.join(empty) + ', expected at least 1 example; check the path or set the weight to 0'
    )


def _largest_remainder(weights: Sequence[float], total: int) -> tuple[int, ...]:
  """Integers proportional to weights that sum to total: floors, then one each to the largest remainders, ties in order."""
  shares = np.asarray(weights, np.float64) / sum(weights) * total
  counts = np.floor(shares).astype(np.int64)
  for i in np.argsort(counts - shares, kind='stable')[: total - counts.sum()]:
    counts[i] += 1
  return tuple(int(count) for count in counts)


def shuffle(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
  """A keyed bijection of [0, size): where `index` goes. No memory, any size up to 2^60.

  A Feistel network permutes the next even power of two; values that land outside [0, size) walk on along their cycle
  until they are inside, which keeps it a bijection.

  Args:
    index: int64[P].
    size: int64[P], each at least 1.
    key: uint64[P]; equal keys and sizes are one permutation.

  Returns:
    int64[P].
  """
  bits = np.zeros(size.shape, np.uint64)
  while (small := (size - 1) >> (2 * bits).astype(np.int64) > 0).any():
    bits += small.astype(np.uint64)
  value = _feistel(index.astype(np.uint64), bits, key)
  limit = size.astype(np.uint64)
  while (outside := value >= limit).any():
    value[outside] = _feistel(value[outside], bits[outside], key[outside])
  return value.astype(np.int64)


def _feistel(value: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
  """Permutes [0, 4^bits): `bits` is half the width of the word."""
  mask = (np.uint64(1) << bits) - np.uint64(1)
  left, right = value >> bits, value & mask
  for round_key in _ROUND_KEYS:
    # Middle bits of the hash, because small domains take only a few and the low ones mix least.
    left, right = right, left ^ ((_hash((key + round_key) ^ right) >> np.uint64(20)) & mask)
  return (left << bits) | right


def _hash(x: np.ndarray) -> np.ndarray:
  """splitmix64's finaliser: uint64[P] -> uint64[P], every bit depends on every bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _key(seed: int, stream: np.ndarray | int, counter: np.ndarray) -> np.ndarray:
  """uint64[P] key of one permutation: seed, then the task (0: the blocks), then the block or epoch."""
  key = _hash(np.full(counter.shape, seed & 0xFFFFFFFFFFFFFFFF, np.uint64) + _GOLDEN)
  key = _hash(key ^ (np.broadcast_to(stream, counter.shape).astype(np.uint64) * _GOLDEN))
  return _hash(key ^ counter.astype(np.uint64))
