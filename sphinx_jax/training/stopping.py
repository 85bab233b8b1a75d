"""Stops a run at SIGTERM or Ctrl-C so that it can save: after an update that all hosts share.

jax's `reached_preemption_sync_point` does this for SIGTERM only. Its C++ handler takes the signal
for itself, does not report when the run is over, and does not handle Ctrl-C.
"""

import signal
import threading
from types import FrameType

from sphinx_jax.core.progress import log
from sphinx_jax.parallel import hosts

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Updates between the request and the stop. A process dispatches an update only when the one before
# the previous one is done everywhere, so no process can be further ahead.
_DELAY = 2


class Stopping:
  """A context in which the first signal only requests a stop. A second one acts as usual.

  Args:
    run: name of the run, the same on every process.

  Attributes:
    requested: number of the signal received, or 0.
  """

  def __init__(self, run: str = '') -> None:
    self.requested = 0
    self._key = f'stop/{run}'
    self._published = False
    self._old_handlers = {}

  def __enter__(self) -> 'Stopping':
    if threading.current_thread() is threading.main_thread():  # Python allows handlers only there.
      self._old_handlers = {number: signal.signal(number, self._request) for number in _SIGNALS}
    return self

  def _request(self, number: int, frame: FrameType | None) -> None:
    self.requested = number
    self._restore_handlers()
    log.info('%s: stopping; send it again to stop at once', signal.Signals(number).name)

  def after(self, step: int, last: bool) -> int:
    """The number of the signal for which all processes stop after this update, or 0.

    Every process must call this after every update. The first process with a request publishes an
    update that no process has passed: the value is set before that process dispatches its next
    update, and without this update no other process gets further.

    Args:
      step: the update that was dispatched; the metrics of the one before have been read.
      last: whether it is the run's last update.
    """
    if hosts.process_count() == 1:
      return self.requested
    if self.requested and not self._published:
      hosts.publish(self._key, f'{step + _DELAY} {self.requested}')
      self._published = True
    if last:
      hosts.barrier()
    request = hosts.lookup(self._key)
    if request is None:
      return 0
    stop_step, number = map(int, request.split())
    return number if last or step >= stop_step else 0

  def _restore_handlers(self) -> None:
    for number, handler in self._old_handlers.items():
      signal.signal(number, handler)

  def __exit__(self, *_: object) -> None:
    self._restore_handlers()
