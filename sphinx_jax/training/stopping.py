"""SIGTERM and Ctrl-C ask a run to stop, so that it can save: after the update at hand, or on many hosts all after one.

jax's `reached_preemption_sync_point` has the same aim, for SIGTERM alone: its C++ takes the signal, never says when the run
is over, and leaves none for Ctrl-C.
"""

import signal
import threading
from types import FrameType

from sphinx_jax.core.progress import log
from sphinx_jax.parallel import hosts

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AHEAD = 2  # Updates. A process sends one off only when the one before the last is done everywhere.


class Stopping:
  """A context in which the first signal only sets `asked`; a second one acts as if there were no context.

  Args:
    run: name of the run, the same on every process.

  Attributes:
    asked: the signal's number, or 0.
  """

  def __init__(self, run: str = ''):
    self.asked = 0
    self._run, self._told = f'stop/{run}', False
    self._before = {}

  def __enter__(self) -> 'Stopping':
    if (
      threading.current_thread() is threading.main_thread()
    ):  # Elsewhere Python does not allow handlers.
      self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
    return self

  def _ask(self, number: int, frame: FrameType | None) -> None:
    self.asked = number
    self._restore()
    log.info('%s: stopping; once more stops at once', signal.Signals(number).name)

  def after(self, step: int, last: bool) -> int:
    """The number of the signal for which all processes stop after this update, or 0.

    To be asked by every process after every update. The word of the first process that was asked names an update that
    none has passed: it is there before that process sends off its next update, without which no other gets further.

    Args:
      step: the update that was sent off; the metrics of the one before have been read.
      last: whether it is the run's last one.
    """
    if hosts.process_count() == 1:
      return self.asked
    if self.asked and not self._told:
      hosts.publish(self._run, f'{step + _AHEAD} {self.asked}')
      self._told = True
    if last:
      hosts.barrier()
    at, _, number = (hosts.lookup(self._run) or '').partition(' ')
    return int(number) if number and (last or step >= int(at)) else 0

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __exit__(self, *_) -> None:
    self._restore()
