import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import weights


def tree(seed: int, dtype=np.float32) -> dict:
  rng = np.random.default_rng(seed)
  return {'llm': {'w': jnp.asarray(rng.normal(size=(3, 4)), dtype), 'b': jnp.asarray(rng.normal(size=4), dtype)},
          'encoders': {'w': jnp.asarray(rng.normal(size=(2, 2)), dtype)}}


def same(a, b) -> bool:
  return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.float64])
def test_one_and_zero_return_the_first_bit_for_bit(dtype):
  with jax.enable_x64(dtype == np.float64):
    a, b = tree(0, dtype), tree(1, dtype)
    a['llm']['b'] = a['llm']['b'].at[0].set(-0.0)
    b['llm']['b'] = b['llm']['b'].at[1].set(jnp.inf)
    assert same(weights.mix([a, b], (1.0, 0.0)), a)
    assert same(weights.mix([a, b], (0, 1)), b)


def test_mixing_is_linear():
  a, b = tree(0), tree(1)
  mixed = weights.mix([a, b], (0.25, 0.75))
  jax.tree.map(lambda x, y, m: np.testing.assert_allclose(m, 0.25 * x + 0.75 * y, rtol=1e-6), a, b, mixed)
  # Of the mix, with a parent again: the coefficients multiply out.
  again = weights.mix([mixed, a], (0.5, 0.5))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), again, weights.mix([a, b], (0.625, 0.375)))


def test_sums_in_float32_and_returns_the_first_dtype():
  # In bfloat16 the ones would be lost one by one beside 256.
  big, one = ({'w': jnp.full((2,), value, jnp.bfloat16)} for value in (256, 1))
  mixed = weights.mix([big, one, one, one, one], (1, 1, 1, 1, 1), unnormalized=True)
  assert mixed['w'].dtype == jnp.bfloat16 and float(mixed['w'][0]) == 260


def test_rules_choose_by_the_first_matching_pattern():
  a, b = tree(0), tree(1)
  mixed = weights.mix([a, b], [('encoders/.*', (1, 0)), ('.*', (0, 1))])
  assert same(mixed['encoders'], a['encoders']) and same(mixed['llm'], b['llm'])


def test_inside_jit_on_a_mesh():
  mesh = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'x'))
  a, b = ({'w': jax.device_put(tree(seed)['llm']['w'], layout)} for seed in (0, 1))
  mixed = jax.jit(lambda a, b: weights.mix([a, b], (0.5, 0.5)))(a, b)
  np.testing.assert_allclose(mixed['w'], 0.5 * a['w'] + 0.5 * b['w'], rtol=1e-6)
  assert mixed['w'].sharding.is_equivalent_to(layout, 2)


@pytest.mark.parametrize('coefficients, words', [
    ((0.5, 0.6), 'sum 1.1'), ((1.0,), '1 coefficients'), ([('llm/.*', (0.5, 0.5))], 'encoders/w'), ((float('nan'), 0.5), 'sum'),
])
def test_wrong_coefficients_are_refused(coefficients, words):
  with pytest.raises(errors.SphinxError, match=words):
    weights.mix([tree(0), tree(1)], coefficients)


def test_differing_parents_are_refused_by_leaf():
  other = tree(1)
  other['llm']['w'] = other['llm']['w'][:2]
  del other['encoders']
  with pytest.raises(errors.SphinxError, match=r'missing encoders/w; llm/w: shape \(2, 4\), expected \(3, 4\)'):
    weights.mix([tree(0), other], (0.5, 0.5))


def test_dtypes_of_parents_may_differ():
  mixed = weights.mix([tree(0), tree(1, jnp.bfloat16)], (0.5, 0.5))
  assert mixed['llm']['w'].dtype == jnp.float32
