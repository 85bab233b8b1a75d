"""What a run says about itself: metrics.jsonl and TensorBoard, averaged over windows of steps.

A window's sums are part of the checkpoint, so a run that stops in the middle of a window writes, after its restart, the
very line that an unbroken run writes.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from etils import epath

from sphinx_jax.core import config as config_lib, errors, tensorflow as quiet_tensorflow

FILE = 'metrics.jsonl'


class Window:
  """Sums of step metrics since the last line, and the seconds they took.

  Args:
    tasks: names of the mixture's tasks, in order.
    sums: what `state` gave, to go on inside a window.
  """

  def __init__(self, tasks: Sequence[str], sums: Mapping[str, Any] | None = None):
    self._tasks = tuple(tasks)
    self._sums = dict(sums or {})
    self._unread: tuple[int, Mapping[str, Any]] | None = None
    self._restart()

  def _restart(self) -> None:
    self._began, self._waited, self._paused = time.perf_counter(), 0.0, 0.0
    self._here = {'steps': 0.0, 'examples': 0.0, 'useful': 0.0}  # Since `_began`, for the rates.

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Time inside is reported as waiting for data."""
    began = time.perf_counter()
    yield
    self._waited += time.perf_counter() - began

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Time inside does not count (evaluation)."""
    began = time.perf_counter()
    yield
    self._paused += time.perf_counter() - began

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of a step that has been sent off, and reads those of the step before it.

    Raises:
      SphinxError: see `read`.
    """
    self.read()
    self._unread = (step, metrics)

  def read(self) -> None:
    """Waits for the last step and adds its metrics to the sums.

    Raises:
      SphinxError: a loss or gradient that is not finite; names the steps since the last line.
    """
    if self._unread is None:
      return
    (step, metrics), self._unread = self._unread, None
    values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
    values['steps'] = np.float64(1)
    for name in ('loss', 'grad_norm'):
      if not math.isfinite(values[name]):
        first = step - int(self._sums.get('steps', 0))
        raise errors.make(
          f'training, steps {first} to {step}',
          f'{name} {values[name]:g} at step {step}',
          'a finite number',
          'the last good checkpoint is kept; look at the data of these steps, '
          'lower optimizer.lr or optimizer.clip',
        )
    for name, value in values.items():
      self._sums[name] = (np.asarray(self._sums.get(name, 0.0)) + value).tolist()
    self._sums['learning_rate'] = float(values['learning_rate'])
    for name in self._here:
      self._here[name] += float(values[name])

  def state(self) -> dict[str, Any]:
    """The sums as JSON-able numbers."""
    return dict(self._sums)

  def close(self) -> dict[str, float]:
    """The averages by name; the next window starts empty."""
    sums, seconds = self._sums, max(time.perf_counter() - self._began - self._paused, 1e-9)
    line = {'loss': _mean(sums['loss'], sums['weight'])}
    for name, loss, weight in zip(self._tasks, sums['task_loss'], sums['task_weight']):
      if weight:
        line[f'loss/{name}'] = loss / weight
    line |= {
      'learning_rate': sums['learning_rate'],
      'grad_norm': sums['grad_norm'] / sums['steps'],
      'useful_share': sums['useful'] / sums['positions'],
      'steps_per_second': self._here['steps'] / seconds,
      'examples_per_second': self._here['examples'] / seconds,
      'tokens_per_second': self._here['useful'] / seconds,
      'data_wait_share': self._waited / seconds,
      'rss_bytes': float(psutil.Process().memory_info().rss),
    }
    self._sums = {}
    self._restart()
    return line


def _mean(total: float, weight: float) -> float:
  return total / weight if weight else 0.0


class Writer:
  """Writes lines of metrics to `metrics.jsonl` and to TensorBoard in a run's directory.

  Lines after `step` are dropped first, in both: they belong to updates that the restored run will do again.

  Args:
    workdir: the run's directory.
    step: the step that the run goes on from.
    enabled: False on all but one process.

  Attributes:
    last: the newest value of every name.
  """

  def __init__(self, workdir: str | os.PathLike, step: int, enabled: bool = True):
    self.last: dict[str, float] = {}
    self._enabled = enabled
    self._lines = [line for line in read(workdir) if line['step'] <= step]
    for line in self._lines:
      self._remember(line)
    if not enabled:
      return
    self._summary = quiet_tensorflow.load().summary
    self._file, board = epath.Path(workdir) / FILE, epath.Path(workdir) / 'tensorboard'
    with self._writing():
      config_lib.write_whole(self._file, self._text())
      if board.exists():
        board.rmtree()
      self._board = self._summary.create_file_writer(os.fspath(board))
      for line in self._lines:
        self._draw(line)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """One line; handed to the operating system before this returns.

    Raises:
      SphinxError: it cannot be written: a full disk.
    """
    line = {'step': step, **values}
    self._remember(line)
    if not self._enabled:
      return
    self._lines.append(line)
    with self._writing():
      if config_lib.is_remote(self._file):  # Objects of a bucket cannot grow.
        self._file.write_text(self._text())
      else:
        with self._file.open('a') as file:
          file.write(json.dumps(line) + '\n')
      self._draw(line)

  def _text(self) -> str:
    return ''.join(json.dumps(line) + '\n' for line in self._lines)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise errors.unwritten(self._file.parent, error) from error

  def _remember(self, line: Mapping[str, float]) -> None:
    self.last |= {name: value for name, value in line.items() if name != 'step'}

  def _draw(self, line: Mapping[str, float]) -> None:
    with self._board.as_default(step=line['step']):
      for name, value in line.items():
        if name != 'step':
          self._summary.scalar(name, value)

  def close(self) -> None:
    """Ends the drawing."""
    if self._enabled:
      self._board.close()


def read(workdir: str | os.PathLike) -> list[dict]:
  """The lines of a run's metrics.jsonl; an unfinished last line (the run was killed) is left out."""
  file = epath.Path(workdir) / FILE
  lines = file.read_text().split('\n')[:-1] if file.exists() else []
  return [json.loads(line) for line in lines]
