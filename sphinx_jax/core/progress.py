"""The package's logger, and progress of anything over a few seconds: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

log = logging.getLogger('sphinx_jax')

_PLAIN_SECONDS = 10.0


def setup_logging(level: int = logging.INFO) -> None:
  """Sends the package's log to stderr as plain lines; called once by every door."""
  if not log.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    log.addHandler(handler)
    log.propagate = False
  log.setLevel(level)


class Progress:
  """Counts something long: `for x in Progress(items, what='scenes')`, or `with Progress(total=n) as bar: bar.update(k)`.

  On a terminal it is a tqdm bar; otherwise a log line every ten seconds, so that log files stay readable.

  Args:
    iterable: what to iterate over, or None to call `update` by hand.
    total: number of units, if known and not `len(iterable)`.
    what: what is counted, shown first.
    unit: its unit; 'B' is shown in kB, MB, GB.
    start: units done before (a resumed run).
  """

  def __init__(
    self,
    iterable: Iterable | None = None,
    *,
    total: int | None = None,
    what: str = '',
    unit: str = 'it',
    start: int = 0,
  ):
    if total is None and hasattr(iterable, '__len__'):
      total = len(iterable)
    self._iterable, self._total, self._what, self._unit = iterable, total, what, unit
    self._done = self._start = start
    self._began = self._spoke = time.monotonic()
    self._note = ''
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(
        total=total, desc=what, unit=unit, unit_scale=unit == 'B', initial=start, leave=False
      )

  def update(self, units: int = 1, note: str = '') -> None:
    """Adds finished units; `note` is shown at the end of the line (the current loss, say)."""
    self._done += units
    self._note = note or self._note
    if self._bar is not None:
      self._bar.set_postfix_str(self._note, refresh=False)
      self._bar.update(units)
    elif time.monotonic() - self._spoke >= _PLAIN_SECONDS:
      self._spoke = time.monotonic()
      log.info(self._line())

  def close(self) -> None:
    """Ends the bar; without a terminal says the last line."""
    if self._bar is not None:
      self._bar.close()
    elif self._spoke > self._began:  # Short work stays silent.
      log.info(self._line())

  def _line(self) -> str:
    seconds = time.monotonic() - self._began
    rate = (self._done - self._start) / max(seconds, 1e-9)
    number = tqdm.format_sizeof if self._unit == 'B' else '{:.3g}'.format
    shown = tqdm.format_sizeof if self._unit == 'B' else str
    total = f'/{shown(self._total)}' if self._total is not None else ''
    return f'{self._what}: {shown(self._done)}{total} {self._unit}, {number(rate)}/s, {seconds:.0f} s  {self._note}'.rstrip()

  def __iter__(self) -> Iterator:
    try:
      for item in self._iterable:
        yield item
        self.update()
    finally:
      self.close()

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self.close()
