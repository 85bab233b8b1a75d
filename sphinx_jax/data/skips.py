"""Counts bad examples by source and reason, logs them, and stops a pass with too many."""

import threading
from collections import Counter
from collections.abc import Mapping

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.data.record import BadExample

STRETCH = 1000  # Examples of which a share of `max_skipped` may be bad.
# Newest stretches that are still counted. Images are decoded long after their texts are read.
_KEPT_STRETCHES = 100
# Bad examples of each source and reason that are logged. After them, only the 10th, 100th, ... is.
_LOGGED = 5


class Skips:
  """Collects the bad examples of one pass over the data. Safe to use from many threads.

  The order of examples is cut into stretches of `STRETCH`. A stretch with too many bad examples
  stops the pass, wherever it is.

  Args:
    counter: (source, reason) -> number, shared by all passes of a pipeline.
    examples: number of examples in the order, or None if it is endless. A short rest at the end
      belongs to the stretch before it.
    max_skipped: share of a stretch that may be bad.
    sizes: source -> its number of examples. A pass stops when all examples of a source are bad,
      whatever max_skipped is: an endless pass over nothing would not end. None: it does not.
  """

  def __init__(
    self,
    counter: Counter,
    examples: int | None,
    max_skipped: float = 0.5,
    sizes: Mapping[str, int] | None = None,
  ) -> None:
    self._counter, self._examples, self._max_skipped = counter, examples, max_skipped
    self._sizes = sizes or {}
    # Source -> the bad examples among its first ones. A source with a good example has no entry.
    self._only_bad: dict[str, set[int]] = {source: set() for source in self._sizes}
    self._last = None if examples is None else max(examples // STRETCH - 1, 0)
    self._bad: dict[int, Counter] = {}
    self._lock = threading.Lock()

  def used(self, source: str) -> None:
    """Notes that a source has a good example."""
    self._only_bad.pop(source, None)

  def add(
    self,
    source: str,
    position: int,
    name: str,
    error: BadExample,
    stands_for: float = 1.0,
    index: int = 0,
  ) -> None:
    """Counts a bad example.

    Args:
      source: name of its source.
      position: its position in the order.
      name: its id, for the log.
      error: what is wrong with it.
      stands_for: the number of bad examples that it represents: 4 if each of 4 hosts sees a
        quarter of the examples.
      index: its number in the source.

    Raises:
      SphinxError: too many examples of the stretch are bad, or all of the source are.
    """
    stretch = position // STRETCH
    if self._last is not None:
      stretch = min(stretch, self._last)
    with self._lock:
      self._counter[source, error.reason] += 1
      number = self._counter[source, error.reason]
      bad = self._bad.setdefault(stretch, Counter())
      bad[source, error.reason] += stands_for
      while len(self._bad) > _KEPT_STRETCHES:
        del self._bad[min(self._bad)]
      total, common = bad.total(), bad.most_common(3)
      only_bad = self._only_bad.get(source)
      if only_bad is not None:
        only_bad.add(index)
    if number <= _LOGGED or _is_power_of_ten(number):
      log.warning(
        "task '%s': skipped %s: %s (%s; %d so far)",
        source,
        name,
        error.message,
        error.reason,
        number,
      )
    size = STRETCH
    if stretch == self._last:
      size = self._examples - stretch * STRETCH
    if total > self._max_skipped * size:
      reasons = ', '.join(f"{count:.0f} of '{task}': {reason}" for (task, reason), count in common)
      examples = f'the {size} examples from {stretch * STRETCH:,} on'
      if stretch == 0:
        examples = f'the first {size} examples'
      raise errors.make(
        'data',
        f'{total:.0f} bad among {examples} ({reasons}; last: {error.message})',
        f'at most {self._max_skipped:.0%} (max_skipped)',
        'see the examples named in the log',
      )
    if only_bad is not None and len(only_bad) == self._sizes[source]:
      raise errors.make(
        f"task '{source}'",
        f'{len(only_bad)} examples, all of them bad (last: {error.message}: {error.reason})',
        'a usable one',
        'see the examples named in the log',
      )


def _is_power_of_ten(number: int) -> bool:
  return str(number).rstrip('0') == '1'
