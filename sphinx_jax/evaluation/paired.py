"""Paired comparisons: is a change better than its baseline, on the same questions and seeds?

The difference of two scores has two sources of noise. Another set of questions would give another
difference, and so would another training run. The variance of the first is that of a bootstrap
over examples: both sides, all seeds and all tasks get the same resamples. The variance of the
second is that of the differences of single seeds over their number. It is what a bootstrap over
seeds gives, times n / (n - 1), because seeds are few. For the same reason the interval takes the
quantiles of Student's t, with Satterthwaite's degrees of freedom: percentiles of resampled seeds
exclude zero whenever three seeds agree in sign, which they do by chance in one of four studies.

Both variances hold the interaction of seeds and examples, so intervals are rather too wide (Owen
2007, "The pigeonhole bootstrap").
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from sphinx_jax.core import errors

MEAN = 'mean'  # The name of the average over tasks in a result.
LEVEL = 0.95
_LEAST_SEEDS = 2  # One seed has no noise of training, so it allows no verdict.

# The answers of a seed to a task: example -> (numerator, denominator). Examples are resampled
# whole, so all questions about one image are one example.
Answers = Mapping[str, tuple[float, float]]


class Difference(NamedTuple):
  """The difference of a change to its baseline.

  Attributes:
    baseline: score of the baseline, the mean over seeds.
    changed: score of the change.
    difference: changed - baseline.
    low, high: its interval of 95 %.
    p: p-value of no difference. None if there are too few seeds.
    by_seed: the difference of each seed.
  """

  baseline: float
  changed: float
  difference: float
  low: float
  high: float
  p: float | None
  by_seed: tuple[float, ...]


def compare(
  changed: Mapping[str, Sequence[Answers]],
  baseline: Mapping[str, Sequence[Answers]],
  resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Difference]:
  """Compares a change with its baseline.

  Args:
    changed: {task: the answers of each seed}. An example that one side lacks is left out.
    baseline: likewise, of the same tasks and seeds.
    resamples: number of resamples of the examples.
    seed: random seed of the resampling.

  Returns:
    {task: difference}, and that of the average over tasks as MEAN if there are several.

  Raises:
    SphinxError: a seed has no example that both sides have.
  """
  examples = sorted({key for seeds in baseline.values() for answers in seeds for key in answers})
  number = {example: column for column, example in enumerate(examples)}
  times = np.random.default_rng(seed).multinomial(
    len(examples), np.full(len(examples), 1 / len(examples)), size=resamples
  )
  every = np.ones((1, len(examples)), np.int64)
  result, parts = {}, []
  for task in changed:
    shared = [set(one) & set(two) for one, two in zip(changed[task], baseline[task])]
    for one, two, common in zip(changed[task], baseline[task], shared):
      if not common:
        raise errors.make(
          f"comparison of task '{task}'",
          f'no example in common (like {min(one, default=None)!r} and {min(two, default=None)!r})',
          'answers to the same questions',
          'give both the same data and the same split of it',
        )
    sums = [_sums(side[task], shared, number) for side in (changed, baseline)]
    # Scores [resamples, seeds] of both sides.
    resampled = [_scores(times, side) for side in sums]
    scores = [_scores(every, side)[0] for side in sums]
    count = max(map(len, shared))
    result[task] = _difference(*scores, resampled[0] - resampled[1], count)
    parts.append((*scores, resampled[0] - resampled[1]))
  if len(parts) > 1:
    averages = [np.mean(part, axis=0) for part in zip(*parts)]
    result[MEAN] = _difference(*averages, len(examples))
  return result


def _sums(
  seeds: Sequence[Answers], shared: Sequence[set[str]], number: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Numerators and denominators, float64[seeds, examples]; 0 where there is no answer."""
  sums = np.zeros((2, len(seeds), len(number)))
  for row, (answers, keys) in enumerate(zip(seeds, shared)):
    for key in keys:
      sums[:, row, number[key]] = answers[key]
  return sums[0], sums[1]


def _scores(times: np.ndarray, sums: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """Scores [resamples, seeds] of examples that are drawn so many times, [resamples, examples]."""
  above, below = (times @ side.T for side in sums)
  return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _difference(
  changed: np.ndarray, baseline: np.ndarray, resampled: np.ndarray, examples: int
) -> Difference:
  """The difference of scores [seeds], with resampled differences [resamples, seeds]."""
  by_seed = changed - baseline
  seeds, difference = len(by_seed), float(by_seed.mean())
  of_examples = float(resampled.mean(axis=1).var())
  of_seeds = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
  deviation = math.sqrt(of_examples + of_seeds)
  half, p = 0.0, 0.0 if difference else 1.0
  if deviation:
    freedom = _freedom(((of_seeds, seeds - 1), (of_examples, examples - 1)))
    half = deviation * float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    p = 2 * float(stats.t.sf(abs(difference) / deviation, freedom))
  return Difference(
    float(baseline.mean()),
    float(changed.mean()),
    difference,
    difference - half,
    difference + half,
    p if seeds >= _LEAST_SEEDS else None,
    tuple(map(float, by_seed)),
  )


def _freedom(parts: Sequence[tuple[float, int]]) -> float:
  """Satterthwaite's degrees of freedom of a sum of variances (variance, degrees of freedom)."""
  total = sum(variance for variance, _ in parts)
  return total**2 / sum(variance**2 / max(freedom, 1) for variance, freedom in parts if variance)


def holm(values: Mapping[str, float | None]) -> dict[str, float | None]:
  """Corrects p-values for their number (Holm 1979); None stays and is not counted.

  The smallest of n values is multiplied by n, the next by n - 1 and so on. None gets smaller than
  the one before it, or larger than 1.
  """
  known = sorted((value, name) for name, value in values.items() if value is not None)
  corrected, largest = dict(values), 0.0
  for rank, (value, name) in enumerate(known):
    largest = max(largest, min(1.0, value * (len(known) - rank)))
    corrected[name] = largest
  return corrected


def verdict(difference: Difference, p: float | None, lower_is_better: bool = False) -> str:
  """Returns the result of a comparison in words.

  Args:
    difference: the difference.
    p: its corrected p-value.
    lower_is_better: whether the score is a loss.
  """
  if p is None:
    return 'no verdict from one seed'
  if p > 1 - LEVEL:
    return 'no difference seen'
  is_better = (difference.difference < 0) == lower_is_better
  return f'{"better" if is_better else "worse"} by {abs(difference.difference):.3f}'
