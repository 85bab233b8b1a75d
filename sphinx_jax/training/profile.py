"""A profiler trace of some steps of a run, for xprof and TensorBoard's profile tab."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from sphinx_jax.core.progress import log


class Profile:
  """A context that traces the steps FIRST to LAST, both included.

  The trace is in `profile/plugins/profile/TIME/` of the run's directory.

  Args:
    steps: (first, last), or () for no trace.
    workdir: the run's directory.
  """

  def __init__(self, steps: Sequence[int], workdir: str | os.PathLike) -> None:
    self._first, self._last = steps or (0, 0)
    self._folder = epath.Path(workdir) / 'profile'
    self._active = False

  def begin(self, step: int) -> None:
    """Call it before everything that belongs to a step."""
    if step == self._first:
      jax.profiler.start_trace(os.fspath(self._folder))
      self._active = True

  def end(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Call it with the metrics of the dispatched step. The last step is waited for."""
    if step == self._last and self._active:
      jax.block_until_ready(metrics)
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._active = False
    log.info('profile of steps %d to %d: %s', self._first, self._last, self._folder)

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *_: object) -> None:
    if self._active:  # The run stopped in between.
      self._stop()
