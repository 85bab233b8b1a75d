"""From what a config says of sampling to the law of the task mix: shares by a rule, stages, mean lengths; and its table."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.mix import tasks

BLOCK = 1024  # positions in which the shares of tasks are exact
MEASURED = 64  # examples of each task that are read for its mean length
SETTINGS = ('by', 'temperature', 'stages')


class Sampling(NamedTuple):
  """The mixture of a run.

  Attributes:
    mixture: the law.
    names, sources: of the tasks and of what feeds them.
    weights: as the config has them, of the first stage.
    tokens: mean positions of an example of each task; None where the rule does not need them.
  """

  mixture: tasks.Mixture
  names: tuple[str, ...]
  sources: tuple[str, ...]
  weights: tuple[float, ...]
  tokens: tuple[float, ...] | None

  def table(self, position: int = 0) -> str:
    """Task, source, examples, weight, share of the examples in each stage, mean tokens, epochs before `position`.

    Args:
      position: in the order of examples.
    """
    later = [f'from {begin:,}' for begin, _, _ in self.mixture.stages[1:]]
    measured = ['tokens'] if self.tokens else []
    lines = [['task', 'source', 'examples', 'weight', 'share', *later, *measured, 'epochs']]
    for i, (name, epochs) in enumerate(zip(self.names, self.mixture.epochs(position))):
      shares = [f'{counts[i] / self.mixture.block:.3f}' for _, _, counts in self.mixture.stages]
      tokens = [f'{self.tokens[i]:.0f}'] if self.tokens else []
      lines.append(
        [
          name,
          self.sources[i],
          f'{self.mixture.sizes[i]:,}',
          f'{self.weights[i]:g}',
          *shares,
          *tokens,
          f'{epochs:.2f}',
        ]
      )
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return '\n'.join(
      '  '.join(
        cell.rjust(width) if i > 1 else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(line, widths))
      )
      for line in lines
    )


def make(
  sources: Mapping[str, Any],
  weights: Mapping[str, float],
  seed: int,
  settings: Mapping[str, Any] | None,
  caps: Mapping[str, float] | None,
  length: Callable[[int, int], int],
  threads: int,
) -> Sampling:
  """The mixture of opened sources.

  Args:
    sources: task name -> source (`len`, `name`).
    weights: task name -> weight.
    seed: of the order.
    settings: {by, temperature, stages} of the config, or None: weights are shares of examples. `by` is a rule of
      `mix.tasks.shares`; stages ((position, {task: weight}), ...) say which weights are other ones from a position of the
      order of examples on, and tasks that one does not name keep theirs.
    caps: task name -> most examples that count, by 'temperature'.
    length: (task, example) -> positions that it takes; raises BadExample.
    threads: that read, where lengths are measured.

  Raises:
    SphinxError: settings, weights or sizes that do not fit; a task of which nothing can be read, where that is measured.
  """
  settings, caps, names = dict(settings or {}), dict(caps or {}), tuple(sources)
  for setting in settings:
    if setting not in SETTINGS:
      raise errors.unknown('setting of sampling', setting, SETTINGS)
  rule, temperature = settings.get('by', 'examples'), settings.get('temperature', 1.0)
  if rule != 'temperature' and (caps or temperature != 1):
    raise errors.make(
      'sampling',
      f"by '{rule}' with {f'caps of {sorted(caps)}' if caps else f'temperature {temperature:g}'}",
      "by 'temperature', which alone reads them",
      "set sampling.by to 'temperature' or leave them out",
    )
  stages = _stages(weights, settings.get('stages', ()), names)
  sizes = [len(source) for source in sources.values()]
  labels = [
    name if source.name == name else f'{name} ({source.name})' for name, source in sources.items()
  ]

  def law(rule: str, tokens: Sequence[float] | None = None) -> tasks.Mixture:
    capped = [caps.get(name) for name in names]
    shares = [
      (position, tasks.shares(rule, these, sizes, tokens, temperature, capped, labels))
      for position, these in stages
    ]
    return tasks.Mixture(shares[0][1], sizes, seed, BLOCK, labels, shares[1:])

  if rule != 'tokens':
    return Sampling(
      law(rule), names, tuple(source.name for source in sources.values()), stages[0][1], None
    )
  law('examples')  # What is wrong with weights and sizes is said before anything is read.
  tokens = _mean_lengths(
    labels,
    sizes,
    [any(these[i] for _, these in stages) for i in range(len(names))],
    length,
    threads,
  )
  return Sampling(
    law(rule, tokens),
    names,
    tuple(source.name for source in sources.values()),
    stages[0][1],
    tokens,
  )


def _stages(
  weights: Mapping[str, float],
  changes: Sequence[tuple[int, Mapping[str, float]]],
  names: Sequence[str],
) -> list[tuple[int, tuple[float, ...]]]:
  """(position, the weights of all tasks) of every stage, the first at 0."""
  now = dict(weights)
  stages = [(0, tuple(now[name] for name in names))]
  for position, changed in changes:
    for name in changed:
      if name not in now:
        raise errors.unknown(f'task of the stage at {position:,}', name, names)
    now |= dict(changed)
    stages.append((position, tuple(now[name] for name in names)))
  return stages


def _mean_lengths(
  names: Sequence[str],
  sizes: Sequence[int],
  wanted: Sequence[bool],
  length: Callable[[int, int], int],
  threads: int,
) -> tuple[float, ...]:
  """Mean length of examples spread over each source: a function of the files alone, the same on every host."""

  def measure(task: int, index: int) -> int | BadExample:
    try:
      return length(task, index)
    except BadExample as error:
      return error

  entries = [
    (task, i * size // min(size, MEASURED))
    for task, size in enumerate(sizes)
    if wanted[task]
    for i in range(min(size, MEASURED))
  ]
  with ThreadPoolExecutor(threads, thread_name_prefix='sphinx_jax measure') as pool:
    found = list(
      Progress(
        pool.map(measure, *zip(*entries)), total=len(entries), what='mean lengths', unit='example'
      )
    )
  means = []
  for task, name in enumerate(names):
    mine = [result for (of, _), result in zip(entries, found) if of == task]
    readable = [result for result in mine if not isinstance(result, BadExample)]
    if mine and not readable:
      raise errors.make(
        f"task '{name}'",
        f'none readable of {len(mine)} examples looked at ({mine[0].message})',
        'some, to measure their tokens',
        'check its files',
      )
    means.append(float(np.mean(readable)) if readable else 0.0)
  return tuple(means)
