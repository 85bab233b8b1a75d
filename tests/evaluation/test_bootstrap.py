import numpy as np
import pytest

from sphinx_jax.evaluation import bootstrap


@pytest.mark.parametrize('share', [0.2, 0.5, 0.9])
def test_the_interval_of_an_accuracy_is_binomial(share):
  count = 2000
  right = np.arange(count) < share * count
  low, high = bootstrap.interval(right, np.ones(count), resamples=4000)
  width = 1.96 * np.sqrt(share * (1 - share) / count)
  assert (low, high) == pytest.approx((share - width, share + width), abs=0.15 * width)


def test_the_interval_of_a_ratio_of_sums_follows_the_delta_method():
  rng = np.random.default_rng(0)
  below = rng.integers(1, 10, 3000).astype(float)
  above = below * rng.uniform(0, 1, 3000)
  ratio = bootstrap.ratio(above, below)
  deviation = np.std(above - ratio * below) / below.mean() / np.sqrt(3000)
  low, high = bootstrap.interval(above, below, resamples=4000)
  assert (low, high) == pytest.approx(
    (ratio - 1.96 * deviation, ratio + 1.96 * deviation), abs=0.2 * deviation
  )


def test_the_ratio_weights_examples_by_their_denominators():
  assert bootstrap.ratio([2, 0], [2, 6]) == 0.25


def test_the_same_seed_gives_the_same_interval():
  values = np.random.default_rng(0).uniform(size=50), np.ones(50)
  assert (
    bootstrap.interval(*values)
    == bootstrap.interval(*values)
    != bootstrap.interval(*values, seed=1)
  )


def test_intervals_at_the_extremes_are_exact():
  assert bootstrap.interval([1] * 20, [1] * 20) == (1, 1)
  assert bootstrap.interval([0] * 20, [0] * 20) == (0, 0) and bootstrap.ratio([0], [0]) == 0
  assert bootstrap.interval([1.0], [2.0]) == (0.5, 0.5)
