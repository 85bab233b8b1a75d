"""Bootstrap intervals for metrics that are a ratio of sums (accuracy, F1, share of keypoints)."""

import numpy as np


def ratio(numerators, denominators) -> float:
  """sum(numerators) / sum(denominators); 0 where nothing was counted."""
  below = float(np.sum(denominators))
  return float(np.sum(numerators)) / below if below else 0.0


def interval(numerators, denominators, resamples=1000, level=0.95, seed=0) -> tuple[float, float]:
  """Percentile bootstrap interval of the ratio of sums, drawing whole examples with replacement.

  Args:
    numerators: float[B], one an example; what was asked about one image should be summed into one entry, because
      answers about one image are not independent.
    denominators: float[B].
    resamples: number of draws.
    level: share of the draws inside the interval.
    seed: of the draws.

  Returns:
    (low, high), both equal to the ratio when there is a single example.
  """
  numerators, denominators = (
    np.asarray(numerators, np.float64),
    np.asarray(denominators, np.float64),
  )
  count = len(numerators)
  drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
  above, below = drawn @ numerators, drawn @ denominators
  ratios = np.divide(above, below, out=np.zeros(resamples), where=below > 0)
  low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
