"""Bad examples: counted by source and reason, named in the log, and too many of them an error."""

import threading
from collections import Counter

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.data.record import BadExample

_EARLY = 1000  # examples after which bad ones no longer stop the run
_NAMED = 5     # of each source and reason are named; after that, every time their number has another digit


class Skips:
  """Where one pass over the data reports its bad examples; safe to use from many threads.

  Args:
    counter: (source, reason) -> number, shared by the passes of a pipeline.
    first: position at which the pass begins.
    examples: examples in the pass, or None if it is endless.
  """

  def __init__(self, counter: Counter, first: int, examples: int | None):
    self._counter, self._first = counter, first
    self._early = _EARLY if examples is None else min(_EARLY, examples)
    self._bad = Counter()
    self._lock = threading.Lock()

  def add(self, source: str, position: int, name: str, error: BadExample) -> None:
    """Counts an example.

    Raises:
      SphinxError: more than half of the first examples of the pass are bad.
    """
    with self._lock:
      self._counter[source, error.reason] += 1
      number = self._counter[source, error.reason]
      if position - self._first < self._early:
        self._bad[source, error.reason] += 1
      bad = self._bad.total()
    if number <= _NAMED or str(number).rstrip('0') == '1':
      log.warning("task '%s': skipped %s: %s (%s; %d so far)", source, name, error.message, error.reason, number)
    if bad > self._early / 2:
      reasons = ', '.join(f"{count} of '{task}': {reason}" for (task, reason), count in self._bad.most_common(3))
      raise errors.make('data', f'{bad} bad among the first {self._early} examples ({reasons}; last: {error.message})',
                        'at most half', 'see the examples named in the log')
