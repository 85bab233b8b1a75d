"""Every process of a run tells the others that it lives; when one is gone, all end within a bounded time, with a word.

What jax 0.10 does by itself: the others hang in a collective (or gloo fails at once), and after its own time the C++ of its
coordination service aborts them, from a thread of its own, with a stack trace and code 134. Its `missed_heartbeat_callback`
cannot be used from Python (std::bad_cast), so our own signs of life go through its key-value store, faster than its own;
and where process 0, which holds that store, is gone, the abort is caught as what it is, a signal.
"""

import concurrent.futures
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from sphinx_jax.core import errors

AGAIN = 75  # EX_TEMPFAIL: nothing is wrong with the run, start it again on all hosts.
_ROOM = 'sphinx_jax/watch'
_DO = 'run the same command again on all hosts: it goes on from the last save'


class Watch:
  """Two background threads: one tells and asks, one looks at the clock. What it finds ends this process.

  Args:
    client: of jax's coordination service.
    index, count: this process, and how many there are.
    timeout: seconds without a sign of life after which a process is lost.
  """

  def __init__(self, client: Any, index: int, count: int, timeout: float):
    self._client, self._index, self._count, self._timeout = client, index, count, timeout
    self._every = min(timeout / 10, 2.0)
    self._closed = threading.Event()
    self._exchanger = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix='sphinx_jax signs of life'
    )
    self._thread = threading.Thread(target=self._run, name='sphinx_jax watch', daemon=True)
    self._thread.start()

  def _run(self) -> None:
    seen = {process: ('', time.monotonic()) for process in range(self._count)}
    number = 0
    while not self._closed.wait(self._every):
      number += 1
      try:
        found = self._exchanger.submit(self._exchange, str(number)).result(self._timeout)
      except Exception:  # Its process is gone or does not answer; a moment's trouble passes.
        found = {}
      if 'end' in found:
        end(*json.loads(found['end']))
      now = time.monotonic()
      for process, (sign, since) in seen.items():
        new = found.get(f'alive/{process}', sign)
        if new != sign:
          seen[process] = new, now
        elif now - since > self._timeout and not self._closed.is_set():
          self._lost(process if found else 0)

  def _exchange(self, sign: str) -> dict[str, str]:
    self._client.key_value_set(f'{_ROOM}/alive/{self._index}', sign, allow_overwrite=True)
    return {
      key.removeprefix(f'{_ROOM}/'): value
      for key, value in self._client.key_value_dir_get(f'{_ROOM}/')
    }

  def _lost(self, process: int) -> None:
    self.stop_all(
      AGAIN,
      str(
        errors.make(
          f'process {process} of {self._count}',
          f'no sign of life for {self._timeout:g} s',
          f'one every {self._every:g} s',
          _DO,
        )
      ),
    )

  def stop_all(self, code: int, line: str, own: str = '') -> None:
    """Ends this process with a last line (`own`, or the same), after the others have been given theirs: `line`."""
    self._closed.set()
    with contextlib.suppress(
      Exception
    ):  # An earlier end stands; or process 0 is gone, and the others find out.
      self._exchanger.submit(
        self._client.key_value_set, f'{_ROOM}/end', json.dumps([code, line])
      ).result(self._timeout)
    if self._index == 0:
      time.sleep(3 * self._every)  # It holds the store that the others read this from.
    end(code, own or line)

  def wait_for_end(self) -> None:
    """Gives the threads the time to find out who is gone; returns if nobody is."""
    time.sleep(self._timeout + 3 * self._every)

  def close(self) -> None:
    """Ends the watch."""
    self._closed.set()
    self._thread.join(self._timeout)
    self._exchanger.shutdown(wait=False)


def end(code: int, line: str) -> None:
  """Ends this process, whatever its other threads hang in."""
  print(f'error: {line}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(code)


def catch_abort(explain: Callable[[], str | None]) -> None:
  """Has the abort of jax's coordination client end this process with a last line and the code `AGAIN`.

  Python's own signal handlers run only later, in the main thread, by when an abort is over; one of ctypes runs at once.

  Args:
    explain: gives the line, or None for an abort that is another's, which goes on.
  """

  def handle(number: int) -> None:
    line = explain()
    if line is not None:
      os.write(sys.stderr.fileno(), f'error: {line}\n'.encode())
      os._exit(AGAIN)

  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  catch_abort.handler = kind(handle)  # Lives as long as the process.
  ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGABRT), catch_abort.handler)


def explain_lost(address: str) -> str | None:
  """Why jax aborts a process that runs: nobody answers where process 0 should be. None: it does."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
    return None
  except OSError as error:
    return str(
      errors.make('process 0', f'{error.strerror or error} at {address}', 'its answer', _DO)
    )


def is_connection(error: BaseException) -> bool:
  """Whether an error may be that of a collective whose other side is gone."""
  text = str(error)
  return (
    'gloo' in text.lower()
    or isinstance(error, jax.errors.JaxRuntimeError)
    and 'RESOURCE_EXHAUSTED' not in text
  )
