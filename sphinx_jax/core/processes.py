"""Worker processes."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
  """Makes this worker process exit when its parent is gone.

  Without it, the workers of a killed program would wait for work forever.
  """
  parent = multiprocessing.parent_process()

  def exit_after_parent() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=exit_after_parent, daemon=True).start()
