"""Runs an iterator in a background thread, a few items ahead of its consumer."""

import queue
import threading
import weakref
from collections.abc import Generator
from typing import Any

_END = object()


class Prefetch:
  """Iterates over `items`, which a thread produces ahead of the caller.

  The caller gets an exception of `items` after the items before it. `close` stops the thread and
  closes the generator, after the item that is being produced. It is also called when the object is
  dropped and when the program ends.

  Args:
    items: a generator. It is closed in the thread that runs it.
    depth: most finished items that wait for the caller.
  """

  def __init__(self, items: Generator, depth: int) -> None:
    self._ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    # The thread must not hold `self`: an object that is still referenced is never finalized.
    self._thread = threading.Thread(
      target=_run, args=(items, self._ready, stop), daemon=True, name='sphinx_jax data'
    )
    self._finish = weakref.finalize(self, _halt, self._ready, stop, self._thread)
    self._thread.start()

  def __iter__(self) -> 'Prefetch':
    return self

  def __next__(self) -> Any:
    if not self._finish.alive:
      raise StopIteration
    item, error = self._ready.get()
    if item is _END:
      self.close()
      raise error or StopIteration
    return item

  def close(self) -> None:
    """Stops the thread and ends the iteration."""
    self._finish()

  def __enter__(self) -> 'Prefetch':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _run(items: Generator, ready: queue.Queue, stop: threading.Event) -> None:
  error = None
  try:
    for item in items:
      if not _put(ready, stop, (item, None)):
        break
  except BaseException as caught:  # The caller's thread raises it.
    error = caught
  finally:
    items.close()
    _put(ready, stop, (_END, error))


def _put(ready: queue.Queue, stop: threading.Event, entry: tuple) -> bool:
  while not stop.is_set():
    try:
      ready.put(entry, timeout=0.1)
      return True
    except queue.Full:
      continue
  return False


def _halt(ready: queue.Queue, stop: threading.Event, thread: threading.Thread) -> None:
  stop.set()
  if thread is not threading.current_thread():
    thread.join(timeout=10)  # A file system that hangs must not block the end of the program.
