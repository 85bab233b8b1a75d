"""Bad examples: counted by source and reason, named in the log, and too many of them an error."""

import threading
from collections import Counter

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.data.record import BadExample

STRETCH = 1000  # examples of which a set share may be bad
_KEPT = 100  # newest stretches that are still counted; pictures are decoded long after their texts were read
_NAMED = (
  5  # of each source and reason are named; after that, every time their number has another digit
)


class Skips:
  """Where one pass over the data reports its bad examples; safe to use from many threads.

  The order of examples is cut in stretches of `STRETCH`; one with too many bad examples ends the pass, early or late.

  Args:
    counter: (source, reason) -> number, shared by the passes of a pipeline.
    examples: examples in the order, or None if it is endless; a short rest belongs to the stretch before it.
    most: share of a stretch that may be bad.
  """

  def __init__(self, counter: Counter, examples: int | None, most: float = 0.5):
    self._counter, self._examples, self._most = counter, examples, most
    self._last = None if examples is None else max(examples // STRETCH - 1, 0)
    self._bad: dict[int, Counter] = {}
    self._lock = threading.Lock()

  def add(
    self, source: str, position: int, name: str, error: BadExample, stands_for: float = 1.0
  ) -> None:
    """Counts an example.

    Args:
      source, position, name: where it comes from, where it stands in the order, and its id.
      error: what is wrong.
      stands_for: how many bad examples of the stretch it tells of; 4 where each of 4 hosts looks at its quarter.

    Raises:
      SphinxError: too many examples of the stretch are bad.
    """
    stretch = position // STRETCH if self._last is None else min(position // STRETCH, self._last)
    with self._lock:
      self._counter[source, error.reason] += 1
      number = self._counter[source, error.reason]
      bad = self._bad.setdefault(stretch, Counter())
      bad[source, error.reason] += stands_for
      while len(self._bad) > _KEPT:
        del self._bad[min(self._bad)]
      total, common = bad.total(), bad.most_common(3)
    if number <= _NAMED or str(number).rstrip('0') == '1':
      log.warning(
        "task '%s': skipped %s: %s (%s; %d so far)",
        source,
        name,
        error.message,
        error.reason,
        number,
      )
    size = STRETCH if stretch != self._last else self._examples - stretch * STRETCH
    if total > self._most * size:
      reasons = ', '.join(f"{count:.0f} of '{task}': {reason}" for (task, reason), count in common)
      where = (
        f'the first {size} examples'
        if not stretch
        else f'the {size} examples from {stretch * STRETCH:,} on'
      )
      raise errors.make(
        'data',
        f'{total:.0f} bad among {where} ({reasons}; last: {error.message})',
        f'at most {self._most:.0%} (max_skipped)',
        'see the examples named in the log',
      )
