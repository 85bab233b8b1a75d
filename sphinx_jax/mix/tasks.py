"""The mix of tasks: the order of examples in the endless training stream.

SPHINX tunes many vision-language tasks jointly. Here task and example are a pure function of
(seed, position), not the state of a queue. A run starts at any position at once, any number of
hosts agree without messages, and nothing is held in memory, whatever the size of the data.
"""

from collections.abc import Sequence

import numpy as np

from sphinx_jax.core import errors

RULES = ('examples', 'tokens', 'temperature', 'learned')

# Four rounds make a Feistel network pseudorandom. More are needed here, because the halves of small
# domains have few bits.
_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = np.arange(_ROUNDS, dtype=np.uint64) * _GOLDEN


def shares(
  rule: str,
  weights: Sequence[float],
  sizes: Sequence[int],
  tokens: Sequence[float] | None = None,
  temperature: float = 1.0,
  caps: Sequence[float | None] | None = None,
  names: Sequence[str] | None = None,
) -> tuple[float, ...]:
  """Returns the share of examples of each task.

  Args:
    rule: the meaning of a weight. 'examples': a share of the examples. 'tokens': a share of the
      sequence positions, so tasks with long examples get fewer of them. 'temperature': a factor of
      min(size, cap) ** (1 / temperature), the mixing of T5 (arXiv 1910.10683, section 3.5.2):
      temperature 1 is proportional to the sizes, and a high temperature is uniform. 'learned': as
      'examples'; later stages get their weights while the run goes on, see mix/learned.py.
    weights: one per task; a task of weight 0 is left out.
    sizes: number of examples of each task.
    tokens: mean length of each task's examples in positions; for 'tokens'.
    temperature: for 'temperature'.
    caps: for 'temperature': the most examples of each task that count; None: no limit.
    names: names of the tasks, for error messages.

  Returns:
    Shares that sum to 1; all 0 if no task has weight.

  Raises:
    SphinxError: the rule is unknown, or the temperature or a cap is not positive.
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

  Positions are grouped in blocks. Every block has exactly `counts[i]` examples of task i, in
  shuffled order. The examples of a task are numbered as they appear. Each run of `sizes[i]` of them
  (an epoch) is a new permutation of the task's examples. So each epoch has every example exactly
  once, and ends before the next one begins.

  Weights may change at stages. A stage begins with the first block at or after its position, and
  changes only the counts of blocks. A task continues its current epoch, so epochs stay whole.

  Args:
    weights: one per task, at any scale, none negative. A task of weight 0 is left out.
    sizes: number of examples of each task.
    seed: random seed of the order.
    block: positions per block; shares are exact to one part in `block`.
    names: names of the tasks, for error messages.
    stages: (position, weights) in ascending order; the weights apply from that position on.

  Attributes:
    stages: (position, weights, counts) of all stages, the first at 0. Positions are rounded up to
      blocks.

  Raises:
    SphinxError: a weight is negative or all are zero, a task has weight but no examples, the share
      of a task is less than one example per block, or stages are out of order.
  """

  def __init__(
    self,
    weights: Sequence[float],
    sizes: Sequence[int],
    seed: int = 0,
    block: int = 1024,
    names: Sequence[str] | None = None,
    stages: Sequence[tuple[int, Sequence[float]]] = (),
  ) -> None:
    self.sizes = tuple(int(size) for size in sizes)
    self.seed, self.block = int(seed), int(block)
    self.names = tuple(names or (str(i) for i in range(len(weights))))
    changes = [(0, weights), *stages]
    # The first block of each stage.
    first_blocks = [-(-int(position) // self.block) for position, _ in changes]
    self._first_blocks = np.array(first_blocks, np.int64)
    if (np.diff(self._first_blocks) <= 0).any():
      raise errors.make(
        'stages of the mixture',
        f'positions {[int(position) for position, _ in changes]}',
        f'rising ones after 0, each at least a block of {self.block} further',
        'correct the positions',
      )
    self.stages = tuple(
      (first_block * self.block, tuple(map(float, row)), self._count_examples(row))
      for first_block, (_, row) in zip(first_blocks, changes)
    )
    self.weights, self.counts = self.stages[0][1:]
    # int64[stages, tasks]: examples of each task in a block.
    self._counts = np.array([counts for _, _, counts in self.stages], np.int64)
    # int64[stages, tasks]: examples of each task before each stage.
    stage_counts = np.diff(self._first_blocks)[:, None] * self._counts[:-1]
    none_yet = np.zeros((1, len(self.sizes)), np.int64)
    self._before = np.concatenate([none_yet, np.cumsum(stage_counts, axis=0)])
    # int64[stages, block]: the task of each slot of a block before shuffling.
    self._slot_tasks = np.stack(
      [np.repeat(np.arange(len(self.sizes)), counts) for counts in self._counts]
    )
    # int64[stages, tasks]: the first slot of each task.
    self._first_slots = np.cumsum(self._counts, axis=1) - self._counts

  def _count_examples(self, weights: Sequence[float]) -> tuple[int, ...]:
    """Returns the number of examples of each task in a block."""
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
    """Returns the example at each position.

    Args:
      positions: int64[P], from 0 on, in any order.

    Returns:
      task int32[P], example int64[P] (index inside the task), epoch int64[P] (of the task, from 0).
    """
    block, offset = np.divmod(np.asarray(positions, np.int64), self.block)
    blocks, which = np.unique(block, return_inverse=True)
    tasks, ranks = self._order(blocks)
    task, rank = tasks[which, offset], ranks[which, offset]
    sizes = np.maximum(np.asarray(self.sizes, np.int64), 1)[task]
    epoch, index = np.divmod(self._examples_before(block, task) + rank, sizes)
    example = shuffle(index, sizes, _key(self.seed, task + 1, epoch))
    return task.astype(np.int32), example, epoch

  def _stage(self, block: np.ndarray | int) -> np.ndarray:
    """Returns the number of the stage of each block."""
    return np.searchsorted(self._first_blocks, block, side='right') - 1

  def _examples_before(self, block: np.ndarray | int, task: np.ndarray) -> np.ndarray:
    """Returns how many examples of a task come before a block, int64 in the shape of both."""
    stage = self._stage(block)
    blocks_of_stage = block - self._first_blocks[stage]
    return self._before[stage, task] + blocks_of_stage * self._counts[stage, task]

  def _order(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order inside some blocks.

    Args:
      blocks: int64[N], numbers of blocks.

    Returns:
      int64[N,block]: the task at each place; int64[N,block]: how many examples of that task come
      before it in the block.
    """
    stage = self._stage(blocks)[:, None]
    key = np.repeat(_key(self.seed, 0, blocks), self.block)
    place = np.tile(np.arange(self.block), len(blocks))
    slot = shuffle(place, np.full_like(place, self.block), key).reshape(len(blocks), self.block)
    task = self._slot_tasks[stage, slot]
    # Sorted by task, a task's examples are in consecutive slots that start at its first slot.
    by_task = np.argsort(task, axis=1, kind='stable')
    sorted_tasks = np.take_along_axis(task, by_task, 1)
    sorted_ranks = np.arange(self.block) - self._first_slots[stage, sorted_tasks]
    rank = np.empty_like(task)
    np.put_along_axis(rank, by_task, sorted_ranks, 1)
    return task, rank

  def epochs(self, positions: int) -> tuple[float, ...]:
    """Returns how many epochs of each task lie before a position; 0 for a task without examples."""
    blocks, rest = divmod(int(positions), self.block)
    tasks, _, _ = self.lookup(np.arange(blocks * self.block, blocks * self.block + rest))
    all_tasks = np.arange(len(self.sizes))
    seen = self._examples_before(blocks, all_tasks) + np.bincount(tasks, minlength=len(self.sizes))
    return tuple(float(count / size) if size else 0.0 for count, size in zip(seen, self.sizes))


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
  """Returns integers proportional to weights that sum to `total`.

  They are the floors of the exact shares; those with the largest remainders get one more. Ties are
  broken in order.
  """
  exact = np.asarray(weights, np.float64) / sum(weights) * total
  counts = np.floor(exact).astype(np.int64)
  for i in np.argsort(counts - exact, kind='stable')[: total - counts.sum()]:
    counts[i] += 1
  return tuple(int(count) for count in counts)


def shuffle(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
  """Permutes [0, size) by a key and returns where `index` goes, for any size up to 2^60.

  A Feistel network permutes the next even power of two. A value outside [0, size) is permuted again
  until it is inside. It walks along its cycle, so the result is a bijection. Nothing is stored.

  Args:
    index: int64[P].
    size: int64[P], each at least 1.
    key: uint64[P]; equal keys and sizes are one permutation.

  Returns:
    int64[P].
  """
  # Half the bits of the smallest even power of two that is not below the size.
  bits = np.zeros(size.shape, np.uint64)
  while (too_small := (size - 1) >> (2 * bits).astype(np.int64) > 0).any():
    bits += too_small.astype(np.uint64)
  value = _feistel(index.astype(np.uint64), bits, key)
  limit = size.astype(np.uint64)
  while (outside := value >= limit).any():
    value[outside] = _feistel(value[outside], bits[outside], key[outside])
  return value.astype(np.int64)


def _feistel(value: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
  """Permutes [0, 4^bits); `bits` is half the width of a value."""
  mask = (np.uint64(1) << bits) - np.uint64(1)
  left, right = value >> bits, value & mask
  for round_key in _ROUND_KEYS:
    # Middle bits of the hash: small domains take only a few, and the low ones mix least.
    left, right = right, left ^ ((_hash((key + round_key) ^ right) >> np.uint64(20)) & mask)
  return (left << bits) | right


def _hash(x: np.ndarray) -> np.ndarray:
  """The finalizer of splitmix64, uint64[P] -> uint64[P]: every bit depends on every bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _key(seed: int, stream: np.ndarray | int, counter: np.ndarray) -> np.ndarray:
  """Returns the keys of permutations, uint64[P].

  Args:
    seed: random seed.
    stream: 0 for the order inside blocks, task + 1 for the examples of a task.
    counter: int64[P], the block or the epoch.
  """
  key = _hash(np.full(counter.shape, seed & 0xFFFFFFFFFFFFFFFF, np.uint64) + _GOLDEN)
  key = _hash(key ^ (np.broadcast_to(stream, counter.shape).astype(np.uint64) * _GOLDEN))
  return _hash(key ^ counter.astype(np.uint64))
