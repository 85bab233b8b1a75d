"""The metrics of a run: metrics.jsonl and TensorBoard, averaged over windows of steps.

The sums of the open window are part of the checkpoint. A run that stops in the middle of a window
therefore writes, after its restart, the same line as an uninterrupted run.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from etils import epath

from sphinx_jax.core import errors, files, tensorflow
from sphinx_jax.core.progress import log
from sphinx_jax.training import loss as losses

FILE = 'metrics.jsonl'
# Metrics of the machine. They differ between two runs of one config; all others are equal.
MACHINE_METRICS = (
  'steps_per_second',
  'examples_per_second',
  'tokens_per_second',
  'data_wait_share',
  'rss_bytes',
  'tflops_per_second',
  'mfu',
)
# Metrics of a step whose newest value counts, not their sum.
_LAST = {'learning_rate', 'loss_scale'}


class Window:
  """Sums of the step metrics since the last written line, and the time they took.

  Args:
    tasks: names of the mixture's tasks, in order.
    sums: the value of `state` from which to resume inside a window.
    flops: FLOP of an update over all devices, without the LM head.
    label_flops: those of the LM head for a position with loss weight.
    peak: FLOP/s that all devices reach at most.
  """

  def __init__(
    self,
    tasks: Sequence[str],
    sums: Mapping[str, Any] | None = None,
    flops: float = 0.0,
    label_flops: float = 0.0,
    peak: float = math.inf,
  ) -> None:
    self._flops, self._label_flops, self._peak = flops, label_flops, peak
    self._tasks = tuple(tasks)
    self._sums = dict(sums or {})
    self._unread: tuple[int, Mapping[str, Any]] | None = None
    self._start_clock()

  def _start_clock(self) -> None:
    self._began, self._waited, self._paused = time.perf_counter(), 0.0, 0.0
    # Counts since `_began`, for the rates. `_sums` may begin earlier, before a restart.
    self._timed = {'steps': 0.0, 'examples': 0.0, 'useful': 0.0, 'labelled': 0.0}

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """A context whose time counts as waiting for data."""
    began = time.perf_counter()
    yield
    self._waited += time.perf_counter() - began

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """A context whose time does not count, for evaluation."""
    began = time.perf_counter()
    yield
    self._paused += time.perf_counter() - began

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of a dispatched step, and reads those of the step before it.

    Args:
      step: number of the step.
      metrics: see `step.make_train_step`. They may still be in computation.

    Raises:
      SphinxError: see `read`.
    """
    self.read()
    self._unread = (step, metrics)

  def read(self) -> None:
    """Waits for the last step and adds its metrics to the sums.

    Raises:
      SphinxError: the loss or the gradient norm is not finite; names the steps since the last line.
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
    for name in _LAST & values.keys():
      self._sums[name] = float(values[name])
    if values.get('skipped'):
      scale = values['loss_scale']
      log.info('step %d: gradients overflow; skipped, the loss scale is now %g', step, scale)
    for name in self._timed:
      self._timed[name] += float(values[name])

  def state(self) -> dict[str, Any]:
    """The sums, as values that JSON can hold."""
    return dict(self._sums)

  def close(self) -> dict[str, float]:
    """Returns the averages by name, and starts an empty window."""
    sums, seconds = self._sums, max(time.perf_counter() - self._began - self._paused, 1e-9)
    line = {'loss': _mean(sums['loss'], sums['weight'])}
    for name, loss, weight in zip(self._tasks, sums['task_loss'], sums['task_weight']):
      if weight:
        line[f'loss/{name}'] = loss / weight
    for name in sums:
      if name.startswith(losses.MEAN):
        line[name.removeprefix(losses.MEAN)] = _mean(sums[name], sums['weight'])
    done = self._flops * self._timed['steps'] + self._label_flops * self._timed['labelled']
    rate = done / seconds
    line |= {
      'learning_rate': sums['learning_rate'],
      'grad_norm': _mean(sums['grad_norm'], sums['steps'] - sums.get('skipped', 0)),
      'useful_share': sums['useful'] / sums['positions'],
      'steps_per_second': self._timed['steps'] / seconds,
      'examples_per_second': self._timed['examples'] / seconds,
      'tokens_per_second': self._timed['useful'] / seconds,
      'data_wait_share': self._waited / seconds,
      'rss_bytes': float(psutil.Process().memory_info().rss),
      'tflops_per_second': rate / 1e12,
      'mfu': rate / self._peak,
    }
    if 'skipped' in sums:
      line |= {'skipped_updates': sums['skipped'], 'loss_scale': sums['loss_scale']}
    self._sums = {}
    self._start_clock()
    return line


def _mean(total: float, weight: float) -> float:
  return total / weight if weight else 0.0


class Writer:
  """Writes lines of metrics to metrics.jsonl and to TensorBoard, in the directory of a run.

  Lines after `step` are dropped first, from both: the resumed run repeats their updates.

  Args:
    workdir: the run's directory.
    step: the step from which the run resumes.
    enabled: False on all processes but one.
    also: called with every new line, on the enabled process.

  Attributes:
    last: the newest value of every metric.

  Raises:
    SphinxError: the files cannot be written, for instance to a full disk.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    step: int,
    enabled: bool = True,
    also: Callable[[Mapping[str, float]], None] | None = None,
  ) -> None:
    self._also = also
    self.last: dict[str, float] = {}
    self._enabled = enabled
    self._lines = [line for line in read(workdir) if line['step'] <= step]
    for line in self._lines:
      self._remember(line)
    if not enabled:
      return
    self._file = epath.Path(workdir) / FILE
    self._summary = tensorflow.load().summary
    board = epath.Path(workdir) / 'tensorboard'
    with files.writing(workdir):
      files.write_atomic(self._file, self._text())
      if board.exists():
        board.rmtree()
      self._board = self._summary.create_file_writer(os.fspath(board))
      for line in self._lines:
        self._write_scalars(line)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line. It has reached the operating system when this returns.

    Raises:
      SphinxError: the line cannot be written, for instance to a full disk.
    """
    line = {'step': step, **values}
    self._remember(line)
    if not self._enabled:
      return
    self._lines.append(line)
    with files.writing(self._file.parent):
      if files.is_remote(self._file):  # An object in a bucket cannot be appended to.
        self._file.write_text(self._text())
      else:
        with self._file.open('a') as file:
          file.write(json.dumps(line) + '\n')
      self._write_scalars(line)
    if self._also:
      self._also(line)

  def _text(self) -> str:
    return ''.join(json.dumps(line) + '\n' for line in self._lines)

  def _remember(self, line: Mapping[str, float]) -> None:
    self.last |= {name: value for name, value in line.items() if name != 'step'}

  def _write_scalars(self, line: Mapping[str, float]) -> None:
    with self._board.as_default(step=line['step']):
      for name, value in line.items():
        if name != 'step':
          self._summary.scalar(name, value)

  def close(self) -> None:
    """Closes the TensorBoard file."""
    if self._enabled:
      self._board.close()


def read(workdir: str | os.PathLike) -> list[dict]:
  """The lines of a run's metrics.jsonl, without a last line that a killed run did not finish."""
  file = epath.Path(workdir) / FILE
  return files.read_jsonl(file, drop_partial=True) if file.exists() else []


def note(metrics: Mapping[str, float]) -> str:
  """The newest metrics in a few words, for the progress bar."""
  forms = {'loss': 'loss {:.3f}', 'tflops_per_second': '{:.3g} TFLOP/s', 'mfu': 'MFU {:.1%}'}
  return ', '.join(form.format(metrics[name]) for name, form in forms.items() if name in metrics)
