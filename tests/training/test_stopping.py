import os
import signal
import threading

import pytest

from sphinx_jax.training import stopping


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_requests_a_stop_and_old_handlers_return(number):
  before = signal.getsignal(number)
  with stopping.Stopping() as stop:
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested == number
    assert signal.getsignal(number) == before  # A second signal acts as usual.
  assert signal.getsignal(number) == before


def test_outside_the_main_thread_it_does_nothing():
  seen = []

  def body():
    with stopping.Stopping() as stop:
      seen.append(stop.requested)

  thread = threading.Thread(target=body)
  thread.start()
  thread.join()
  assert seen == [0]
