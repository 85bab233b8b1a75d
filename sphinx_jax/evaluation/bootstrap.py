"""Bootstrap intervals for metrics that are a ratio of sums (accuracy, F1, share of keypoints)."""

import numpy as np
from numpy.typing import ArrayLike


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> float:
  """Returns sum(numerators) / sum(denominators), or 0 if the denominators sum to 0."""
  total = float(np.sum(denominators))
  return float(np.sum(numerators)) / total if total else 0.0


def interval(
  numerators: ArrayLike,
  denominators: ArrayLike,
  resamples: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """Returns the percentile bootstrap interval of a ratio of sums.

  Whole examples are resampled with replacement.

  Args:
    numerators: float[examples]. Sum the questions about one image into one example, because
      answers about one image are not independent.
    denominators: float[examples].
    resamples: number of resamples.
    level: share of the resampled ratios inside the interval.
    seed: random seed of the resampling.

  Returns:
    (low, high). Both equal the ratio if there is a single example.
  """
  numerators = np.asarray(numerators, np.float64)
  denominators = np.asarray(denominators, np.float64)
  count = len(numerators)
  # Resampling with replacement by the number of times that each example is drawn.
  times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
  above, below = times @ numerators, times @ denominators
  ratios = np.divide(above, below, out=np.zeros(resamples), where=below > 0)
  low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
