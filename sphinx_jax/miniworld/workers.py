"""Processes that draw scenes ahead of the one that stores them; their number never changes the result."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Iterator

from sphinx_jax.core.processes import end_with_parent
from sphinx_jax.miniworld import scene

_CHUNK, _AHEAD = 64, 8  # scenes a task, tasks ahead
_WORTH = 2000  # scenes below which processes take longer to start than they save


def pool(processes: int | None, scenes: int):
  """A context of an executor with `processes` (default up to 2), or of None where drawing right here is quicker."""
  processes = min(2, os.cpu_count() or 1) if processes is None else processes
  if processes <= 1 or scenes < _WORTH:
    return contextlib.nullcontext()
  # Forking after JAX or TensorFlow started threads may hang.
  return concurrent.futures.ProcessPoolExecutor(
    processes, multiprocessing.get_context('spawn'), end_with_parent
  )


def rows(kind: str, split: str, count: int, seed: int, size: int, executor=None) -> Iterator[dict]:
  """`scene.rows` 0..count-1 in order, drawn by the executor of `pool` or, without one, here."""
  chunks = (
    (kind, split, start, min(start + _CHUNK, count), seed, size)
    for start in range(0, count, _CHUNK)
  )
  if executor is None:
    for chunk in chunks:
      yield from scene.rows(*chunk)
    return
  waiting = collections.deque()
  for chunk in chunks:
    waiting.append(executor.submit(scene.rows, *chunk))
    if len(waiting) > _AHEAD:
      yield from waiting.popleft().result()
  for future in waiting:
    yield from future.result()
