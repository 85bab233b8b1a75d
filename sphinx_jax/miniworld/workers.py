"""Processes that draw scenes. Their number does not change the result."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Iterator

from sphinx_jax.core.processes import end_with_parent
from sphinx_jax.miniworld import scene

_CHUNK = 64  # Scenes of one task of a worker.
_TASKS_AHEAD = 8  # Tasks that are submitted ahead of the reader.
_MIN_SCENES = 2000  # For fewer scenes, processes take longer to start than they save.


def open_pool(
  processes: int | None, scenes: int
) -> contextlib.AbstractContextManager[concurrent.futures.Executor | None]:
  """Opens an executor for drawing, or None if drawing in this process is faster.

  Args:
    processes: number of processes; None: up to 2.
    scenes: number of scenes to draw.
  """
  if processes is None:
    processes = min(2, os.cpu_count() or 1)
  if processes <= 1 or scenes < _MIN_SCENES:
    return contextlib.nullcontext()
  # Forking after JAX or TensorFlow started threads may hang.
  return concurrent.futures.ProcessPoolExecutor(
    processes, multiprocessing.get_context('spawn'), end_with_parent
  )


def draw_rows(
  kind: str,
  split: str,
  count: int,
  seed: int,
  size: int,
  executor: concurrent.futures.Executor | None = None,
  scale: float = 1.0,
) -> Iterator[dict]:
  """Yields rows 0 to count-1 of `scene.rows`, drawn by the executor of `open_pool`.

  Without an executor this process draws them.
  """
  chunks = (
    (kind, split, start, min(start + _CHUNK, count), seed, size, scale)
    for start in range(0, count, _CHUNK)
  )
  if executor is None:
    for chunk in chunks:
      yield from scene.rows(*chunk)
    return
  waiting = collections.deque()
  for chunk in chunks:
    waiting.append(executor.submit(scene.rows, *chunk))
    if len(waiting) > _TASKS_AHEAD:
      yield from waiting.popleft().result()
  for future in waiting:
    yield from future.result()
