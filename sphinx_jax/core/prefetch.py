"""Runs an iterator in a background thread, a few items ahead."""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any

_END = object()


class Prefetch:
  """Iterates over `items`, which a thread pulls ahead of the caller.

  An exception of `items` reaches the caller in its place. `close` (also called when the object is dropped or the
  program ends) stops the thread and closes the generator; it waits for the item in the making.

  Args:
    items: a generator; it is closed in the thread that runs it.
    depth: finished items to keep ready.
  """

  def __init__(self, items: Iterator, depth: int):
    self._ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    # The thread must not hold `self`, or a dropped iterator would never end.
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
    """Stops the thread; nothing more comes out."""
    self._finish()

  def __enter__(self) -> 'Prefetch':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _run(items: Iterator, ready: queue.Queue, stop: threading.Event) -> None:
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
    thread.join(timeout=10)  # A file system that hangs must not hang the end of the program.
