import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.mix import fisher, weights


def drawn(*shape: int, count: int = 2, seed: int = 0) -> list[np.ndarray]:
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


def test_parameters_count_by_their_information():
  leaves = [np.float32([1, 1, 1]), np.float32([3, 3, 3])]
  information = [np.float32([1, 3, 0]), np.float32([3, 1, 1])]
  mixed = fisher.mix_leaf(leaves, (0.5, 0.5), information)
  np.testing.assert_allclose(mixed, [2.5, 1.5, 3.0], rtol=1e-6)


def test_coefficients_multiply_the_information():
  leaves, information = drawn(5, 4, count=3), [np.square(x) for x in drawn(5, 4, count=3, seed=1)]
  shares = (0.2, 0.3, 0.5)
  masses = [c * np.float64(f) for c, f in zip(shares, information)]
  expected = sum(m * w for m, w in zip(masses, leaves)) / sum(masses)
  mixed = fisher.mix_leaf(leaves, shares, information)
  np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('value', [0.0, 1e-30, 1e-12, 1.0])
def test_equal_information_is_the_linear_mix(value):
  leaves = drawn(6, 3)
  information = [np.full((6, 3), value, np.float32)] * 2
  mixed = fisher.mix_leaf(leaves, (0.25, 0.75), information)
  np.testing.assert_allclose(mixed, weights.mix_leaf(leaves, (0.25, 0.75)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_equal_parents_and_one_and_zero_keep_the_bits(dtype):
  a, b = (x.astype(dtype) for x in drawn(4, 3))
  information = [np.square(x) for x in drawn(4, 3, seed=1)]
  for leaves, shares, expected in (
    ((a, a), (0.3, 0.7), a),
    ((a, b), (1.0, 0.0), a),
    ((a, b), (0.0, 1.0), b),
  ):
    mixed = np.asarray(fisher.mix_leaf(leaves, shares, information))
    assert mixed.dtype == dtype and mixed.tobytes() == expected.tobytes()
