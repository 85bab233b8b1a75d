"""SIGTERM and Ctrl-C ask a run to stop after the update at hand, so that it can save."""

import signal
import threading
from types import FrameType

from sphinx_jax.core.progress import log

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
  """A context in which the first signal only sets `asked`; a second one acts as if there were no context.

  Attributes:
    asked: the signal's number, or 0.
  """

  def __init__(self):
    self.asked = 0
    self._before = {}

  def __enter__(self) -> 'Stopping':
    if threading.current_thread() is threading.main_thread():  # Elsewhere Python does not allow handlers.
      self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
    return self

  def _ask(self, number: int, frame: FrameType | None) -> None:
    self.asked = number
    self._restore()
    log.info('%s: stopping after this update; once more stops at once', signal.Signals(number).name)

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __exit__(self, *_) -> None:
    self._restore()
