"""Builds the task mixture from `config.sampling`: shares, stages and mean lengths.

It also formats the mixture as a table.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.core import errors, text
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample, Source
from sphinx_jax.mix import tasks

BLOCK = 1024  # Positions in which the shares of tasks are exact.
MEASURED = 64  # Examples of each task that are read for its mean length.
SETTINGS = ('by', 'temperature', 'stages', 'learned')

Stages = Sequence[tuple[int, Mapping[str, float]]]  # ((position, {task: weight}), ...).


class Sampling(NamedTuple):
  """The mixture of a run.

  Attributes:
    mixture: the order of examples.
    names: task names.
    sources: name of each task's source.
    weights: weights of the first stage, as in the config.
    tokens: mean positions of an example of each task; None if the rule does not need them.
  """

  mixture: tasks.Mixture
  names: tuple[str, ...]
  sources: tuple[str, ...]
  weights: tuple[float, ...]
  tokens: tuple[float, ...] | None

  def table(self, position: int = 0) -> str:
    """The mixture as a text table.

    Columns: task, source, examples, weight, share of the examples in each stage, mean tokens if
    measured, epochs before `position`.

    Args:
      position: position in the order of examples.
    """
    later_stages = [f'from {begin:,}' for begin, _, _ in self.mixture.stages[1:]]
    tokens_header = ['tokens'] if self.tokens else []
    header = ['task', 'source', 'examples', 'weight', 'share', *later_stages, *tokens_header]
    rows = [[*header, 'epochs']]
    epochs = self.mixture.epochs(position)
    for i, name in enumerate(self.names):
      examples, weight = f'{self.mixture.sizes[i]:,}', f'{self.weights[i]:g}'
      shares = [f'{counts[i] / self.mixture.block:.3f}' for _, _, counts in self.mixture.stages]
      tokens = [f'{self.tokens[i]:.0f}'] if self.tokens else []
      form = '.2f' if epochs[i] >= 0.1 or not epochs[i] else '.2g'  # Of a short run it is small.
      seen = format(epochs[i], form)
      rows.append([name, self.sources[i], examples, weight, *shares, *tokens, seen])
    return text.table(rows, align='ll' + 'r' * (len(rows[0]) - 2))


def make_sampling(
  sources: Mapping[str, Source],
  weights: Mapping[str, float],
  seed: int,
  settings: Mapping[str, Any] | None,
  caps: Mapping[str, float] | None,
  measure: Callable[[int, int], int],
  threads: int,
) -> Sampling:
  """Builds the mixture of opened sources.

  Args:
    sources: task name -> source.
    weights: task name -> weight.
    seed: seed of the order.
    settings: `config.sampling`, {by, temperature, stages, learned}. None: weights are shares of
      examples. `by` is a rule of `mix.tasks.shares`. `stages` are the weights from a position in
      the order of examples on. Tasks that a stage does not name keep their weight. `learned` is
      what train.py learns weights by; the mixture does not depend on it.
    caps: task name -> largest number of examples that counts under the rule 'temperature'.
    measure: (task, example) -> positions that the example takes. It may raise BadExample.
    threads: threads that read if lengths are measured.

  Raises:
    SphinxError: settings, weights or sizes do not fit, or no example of a task can be measured.
  """
  settings, caps, names = dict(settings or {}), dict(caps or {}), tuple(sources)
  for setting in settings:
    if setting not in SETTINGS:
      raise errors.unknown('setting of sampling', setting, SETTINGS)
  rule, temperature = settings.get('by', 'examples'), settings.get('temperature', 1.0)
  if rule != 'temperature' and (caps or temperature != 1):
    unused = f'caps of {sorted(caps)}' if caps else f'temperature {temperature:g}'
    raise errors.make(
      'sampling',
      f"by '{rule}' with {unused}",
      "by 'temperature', the only rule that uses them",
      "set sampling.by to 'temperature' or leave them out",
    )
  stages = _stages(weights, settings.get('stages', ()), names)
  sizes = [len(source) for source in sources.values()]
  source_names = tuple(source.name for source in sources.values())
  labels = [
    name if name == source_name else f'{name} ({source_name})'
    for name, source_name in zip(names, source_names)
  ]

  def make_mixture(rule: str, tokens: Sequence[float] | None = None) -> tasks.Mixture:
    task_caps = [caps.get(name) for name in names]
    shares = [
      (begin, tasks.shares(rule, stage_weights, sizes, tokens, temperature, task_caps, labels))
      for begin, stage_weights in stages
    ]
    (_, first), *later = shares
    return tasks.Mixture(first, sizes, seed, BLOCK, labels, later)

  _, first_weights = stages[0]
  if rule != 'tokens':
    return Sampling(make_mixture(rule), names, source_names, first_weights, tokens=None)
  make_mixture('examples')  # Reports wrong weights and sizes before anything is read.
  used = [any(stage_weights[i] for _, stage_weights in stages) for i in range(len(names))]
  tokens = _mean_lengths(labels, sizes, used, measure, threads)
  return Sampling(make_mixture(rule, tokens), names, source_names, first_weights, tokens)


def add_stage(
  stages: Stages, data_position: int, window: int, weights: Mapping[str, float]
) -> Stages:
  """Adds weights that apply as soon as they can without a change of rows that are packed already.

  The stage begins with the first block after the window of `data_position`. A stage that would
  begin there too has not begun, and is replaced.

  Args:
    stages: the stages so far, the positions of examples rounded up to blocks.
    data_position: number of the next row, see pipeline.py.
    window: examples that are packed together.
    weights: task -> weight.

  Returns:
    All stages.
  """
  packed = -(-data_position // window) * window
  begin = -(-packed // BLOCK) * BLOCK
  return (*(stage for stage in stages if stage[0] < begin), (begin, dict(weights)))


def _stages(
  weights: Mapping[str, float],
  changes: Stages,
  names: Sequence[str],
) -> list[tuple[int, tuple[float, ...]]]:
  """(first position, weights of all tasks) of every stage, the first at position 0."""
  current = dict(weights)
  stages = [(0, tuple(current[name] for name in names))]
  for position, changed in changes:
    for name in changed:
      if name not in current:
        raise errors.unknown(f'task of the stage at {position:,}', name, names)
    current |= dict(changed)
    stages.append((position, tuple(current[name] for name in names)))
  return stages


def _mean_lengths(
  labels: Sequence[str],
  sizes: Sequence[int],
  used: Sequence[bool],
  measure: Callable[[int, int], int],
  threads: int,
) -> tuple[float, ...]:
  """Measures the mean length of examples of each task.

  The examples are spread evenly over a source, so the result depends on the files alone and is the
  same on every host.

  Args:
    labels: task names for messages.
    sizes: number of examples of each task.
    used: whether the task has weight in any stage. The mean of unused tasks is 0.
    measure: (task, example) -> positions.
    threads: threads that read.

  Raises:
    SphinxError: no example of a used task can be read.
  """

  def measure_or_error(entry: tuple[int, int]) -> int | BadExample:
    try:
      return measure(*entry)
    except BadExample as error:
      return error

  entries = []
  for task, size in enumerate(sizes):
    count = min(size, MEASURED)
    if used[task]:
      entries += [(task, i * size // count) for i in range(count)]
  lengths: list[list[int]] = [[] for _ in labels]
  unreadable: list[list[BadExample]] = [[] for _ in labels]
  with ThreadPoolExecutor(threads, thread_name_prefix='sphinx_jax measure') as pool:
    measured = pool.map(measure_or_error, entries)
    results = list(Progress(measured, total=len(entries), what='mean lengths', unit='example'))
  for (task, _), result in zip(entries, results):
    if isinstance(result, BadExample):
      unreadable[task].append(result)
    else:
      lengths[task].append(result)
  for label, good, bad in zip(labels, lengths, unreadable):
    if bad and not good:
      raise errors.make(
        f"task '{label}'",
        f'none readable of {len(bad)} examples looked at ({bad[0].message})',
        'at least one, to measure the tokens of the task',
        'check the files of its source',
      )
  return tuple(float(np.mean(good)) if good else 0.0 for good in lengths)
