import os
import signal
import threading

import pytest

from sphinx_jax.training import stopping


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_first_signal_asks_and_handlers_come_back(number):
  before = signal.getsignal(number)
  with stopping.Stopping() as stop:
    assert not stop.asked
    os.kill(os.getpid(), number)
    assert stop.asked == number
    assert signal.getsignal(number) == before  # A second one acts as always.
  assert signal.getsignal(number) == before


def test_outside_the_main_thread_it_does_nothing():
  seen = []

  def body():
    with stopping.Stopping() as stop:
      seen.append(stop.asked)

  thread = threading.Thread(target=body)
  thread.start()
  thread.join()
  assert seen == [0]
