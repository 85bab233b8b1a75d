import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import fisher, linear, weights
from sphinx_jax.mix.tensors import Part


def drawn(*shape: int, count: int = 2, seed: int = 0) -> list[np.ndarray]:
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


def mix(leaves, coefficients, information, dtype=np.float32) -> np.ndarray:
  part = Part(leaves, fishers=information)
  return np.asarray(fisher.mix(part, coefficients, None, {}, np.dtype(dtype)))


def test_parameters_count_by_their_information():
  leaves = [np.float32([1, 1, 1]), np.float32([3, 3, 3])]
  information = [np.float32([1, 3, 0]), np.float32([3, 1, 1])]
  np.testing.assert_allclose(mix(leaves, (0.5, 0.5), information), [2.5, 1.5, 3.0], rtol=1e-6)


def test_coefficients_multiply_the_information():
  leaves, information = drawn(5, 4, count=3), [np.square(x) for x in drawn(5, 4, count=3, seed=1)]
  shares = (0.2, 0.3, 0.5)
  masses = [c * np.float64(f) for c, f in zip(shares, information)]
  expected = sum(m * w for m, w in zip(masses, leaves)) / sum(masses)
  np.testing.assert_allclose(mix(leaves, shares, information), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('value', [0.0, 1e-30, 1e-12, 1.0])
def test_equal_information_is_the_linear_mix(value):
  leaves, information = drawn(6, 3), [np.full((6, 3), value, np.float32)] * 2
  expected = linear.mix_leaf(leaves, (0.25, 0.75))
  np.testing.assert_allclose(mix(leaves, (0.25, 0.75), information), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(mix(leaves, (0.25, 0.75), ()), expected)


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_equal_parents_keep_the_bits(dtype):
  leaf = drawn(4, 3)[0].astype(dtype)
  information = [np.square(x) for x in drawn(4, 3, seed=1)]
  mixed = mix([leaf, leaf.copy()], (0.3, 0.7), information, dtype)
  assert mixed.dtype == dtype and mixed.tobytes() == leaf.tobytes()


@pytest.mark.parametrize('method', ['fisher', 'regmean'])
@pytest.mark.parametrize('shares', [(1, 0), (0, 1)])
def test_a_single_parent_is_returned_bit_for_bit(method, shares):
  a, b = ({'kernel': leaf, 'bias': leaf[0]} for leaf in drawn(4, 4))
  statistics = [{'kernel': np.square(leaf)} for leaf in drawn(4, 4, seed=1)]
  mixed = weights.mix([a, b], shares, method=method, statistics=statistics)
  expected = a if shares[0] else b
  for name, leaf in mixed.items():
    np.testing.assert_array_equal(leaf, expected[name])


def test_a_negative_coefficient_and_missing_statistics_are_refused():
  a, b = ({'kernel': leaf} for leaf in drawn(4, 4))
  with pytest.raises(errors.SphinxError, match=r'\[1.5, -0.5\] of sum 1, expected none below 0'):
    weights.mix([a, b], (1.5, -0.5), method='fisher', statistics=[a, b])
  with pytest.raises(errors.SphinxError, match='1 places of statistics, expected fisher'):
    weights.mix([a, b], (0.5, 0.5), method='fisher', statistics=[a])
