import numpy as np
import pytest

from sphinx_jax.mix import low_rank


def drawn(rank, seed, layers=(3,), width=12, out=20):
  rng = np.random.default_rng(seed)
  a, b = rng.normal(size=(*layers, width, rank)), rng.normal(size=(*layers, rank, out))
  return a.astype(np.float32), b.astype(np.float32)


def test_an_adapter_mixed_with_itself_is_itself():
  a, b = drawn(4, 0)
  mixed = low_rank.mix([(a, b), (a, b)], (0.3, 0.7), 4)
  assert mixed.a.shape == a.shape and mixed.b.shape == b.shape
  np.testing.assert_allclose(mixed.a @ mixed.b, a.astype(float) @ b, atol=1e-6)
  assert mixed.error < 1e-12 * mixed.size


def test_the_sum_of_the_ranks_gives_the_mixture_exactly():
  (a, b), (c, d) = drawn(4, 0), drawn(3, 1)
  exact = 0.25 * a.astype(float) @ b + 0.75 * c.astype(float) @ d
  mixed = low_rank.mix([(a, b), (c, d)], (0.25, 0.75), 7)
  np.testing.assert_allclose(mixed.a @ mixed.b, exact, atol=1e-6)
  more = low_rank.mix([(a, b), (c, d)], (0.25, 0.75), 99)
  assert more.a.shape[-1] == 7
  assert mixed.size == pytest.approx((exact**2).sum())


@pytest.mark.parametrize('width', [12, 5])  # Also a side below the sum of the ranks.
def test_a_lower_rank_is_the_nearest_and_its_error_is_that_of_the_whole_matrix(width):
  (a, b), (c, d) = drawn(4, 0, (), width), drawn(3, 1, (), width)
  exact = a.astype(float) @ b - 0.5 * c.astype(float) @ d
  mixed = low_rank.mix([(a, b), (c, d)], (1, -0.5), 2)
  u, values, v = np.linalg.svd(exact)
  np.testing.assert_allclose(mixed.a @ mixed.b, (u[:, :2] * values[:2]) @ v[:2], atol=1e-9)
  assert mixed.error == pytest.approx(((exact - mixed.a @ mixed.b) ** 2).sum())


def test_adapters_that_add_nothing_are_mixed_to_nothing():
  a, b = drawn(4, 0)
  mixed = low_rank.mix([(a, 0 * b), (a, 0 * b)], (0.5, 0.5), 4)
  assert not (mixed.a @ mixed.b).any() and mixed.size == 0
