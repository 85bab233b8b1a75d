"""The package's logger, and progress bars for work of more than a few seconds."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from sphinx_jax.core.text import printable

log = logging.getLogger('sphinx_jax')

_PLAIN_SECONDS = 10.0


def setup_logging() -> None:
  """Sends the package's log to stderr as plain lines. Every entry point calls it."""
  if not log.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    log.addHandler(handler)
    log.propagate = False
  log.setLevel(logging.INFO)


class _Formatter(logging.Formatter):
  """Lines with the time. Text of the data cannot control the terminal."""

  def __init__(self) -> None:
    super().__init__('%(asctime)s %(message)s', datefmt='%H:%M:%S')

  def formatMessage(self, record: logging.LogRecord) -> str:
    return printable(super().formatMessage(record))


class Progress:
  """Shows the progress of an iteration or of calls of `update`.

      for scene in Progress(scenes, what='scenes'): ...
      with Progress(total=n, what='reading') as progress: progress.update(k)

  On a terminal it is a tqdm bar. Otherwise it is a log line every ten seconds, so that log files
  stay readable.

  Args:
    iterable: items to iterate over, or None to call `update`.
    total: number of units. The default is `len(iterable)`, if there is one.
    what: name of the work, shown first.
    unit: name of the unit; 'B' is shown as kB, MB, GB.
    start: units that an earlier, interrupted run has done.
  """

  def __init__(
    self,
    iterable: Iterable | None = None,
    *,
    total: int | None = None,
    what: str = '',
    unit: str = 'it',
    start: int = 0,
  ) -> None:
    if total is None and hasattr(iterable, '__len__'):
      total = len(iterable)
    self._iterable = iterable
    self._total = total
    self._what = what
    self._unit = unit
    self._done = self._start = self._logged = start
    self._began = self._last_logged = time.monotonic()
    self._note = ''
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(
        total=total, desc=what, unit=unit, unit_scale=unit == 'B', initial=start, leave=False
      )

  def update(self, units: int = 1, note: str = '') -> None:
    """Adds finished units. `note` is shown at the end of the line, for example the current loss."""
    self._done += units
    self._note = note or self._note
    if self._bar is not None:
      self._bar.set_postfix_str(self._note, refresh=False)
      self._bar.update(units)
    elif time.monotonic() - self._last_logged >= _PLAIN_SECONDS:
      self._last_logged = time.monotonic()
      self._logged = self._done
      log.info(self._line())

  def close(self) -> None:
    """Ends the bar, or logs the last line."""
    if self._bar is not None:
      self._bar.close()
    elif self._last_logged > self._began and self._logged != self._done:  # Short work logs nothing.
      log.info(self._line())

  def _line(self) -> str:
    seconds = time.monotonic() - self._began
    rate = (self._done - self._start) / max(seconds, 1e-9)
    if self._unit == 'B':
      done, total = tqdm.format_sizeof(self._done), tqdm.format_sizeof(self._total or 0)
      rate_text = tqdm.format_sizeof(rate)
    else:
      done, total, rate_text = str(self._done), str(self._total), f'{rate:.3g}'
    count = done if self._total is None else f'{done}/{total}'
    line = f'{self._what}: {count} {self._unit}, {rate_text}/s, {seconds:.0f} s'
    if rate and self._done < (self._total or 0):
      line += f', {tqdm.format_interval((self._total - self._done) / rate)} left'
    return f'{line}  {self._note}'.rstrip()

  def __iter__(self) -> Iterator:
    try:
      for item in self._iterable:
        yield item
        self.update()
    finally:
      self.close()

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
