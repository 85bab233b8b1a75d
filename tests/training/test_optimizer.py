import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sphinx_jax.core import errors
from sphinx_jax.training import optimizer

AXES = {'norm': {'scale': ('layers', 'embed')}, 'qkv': {'bias': (None, 'heads'), 'kernel': ('layers', 'embed', 'heads')},
        'start': ('embed',), 'embed': ('vocab', 'embed')}


def adamw(**changes) -> optax.GradientTransformation:
  settings = dict(rate=lambda count: 0.1, decayed={'w': True, 'b': False}, betas=(0.9, 0.95), weight_decay=0.5, clip=1e9)
  return optimizer.make_optimizer(**(settings | changes))


def test_schedule_warms_up_then_falls_along_a_cosine():
  rate = optimizer.schedule(lr=2.0, warmup=4, decay_to=0.1, steps=104)
  values = np.array([rate(jnp.int32(i)) for i in range(104)])
  np.testing.assert_allclose(values[:4], [0.5, 1.0, 1.5, 2.0])
  assert np.all(np.diff(values[3:]) < 0)
  assert values[53] == pytest.approx((2.0 + 0.2) / 2, rel=0.01) and values[-1] == pytest.approx(0.2)


@pytest.mark.parametrize('warmup, steps', [(0, 1), (5, 5), (0, 10)])
def test_schedule_of_short_runs_is_positive_and_finite(warmup, steps):
  rate = optimizer.schedule(1.0, warmup, 0.5, steps)
  values = np.array([rate(jnp.int32(i)) for i in range(steps)])
  assert np.all(values > 0) and np.all(values <= 1)


def test_only_matrices_decay_whatever_is_stacked():
  assert optimizer.decays(AXES) == {'norm': {'scale': False}, 'qkv': {'bias': False, 'kernel': True}, 'start': False, 'embed': True}


def test_decay_without_gradient_shrinks_only_what_decays():
  params = {'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}
  tx = adamw()
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates['w'], -0.05)  # rate * weight_decay
  np.testing.assert_array_equal(updates['b'], 0)


def test_gradients_over_the_norm_are_scaled_together():
  tx = adamw(clip=1.0, weight_decay=0.0)
  params = {'w': jnp.zeros((2,)), 'b': jnp.zeros(1)}
  gradient = {'w': jnp.asarray([3.0, 0.0]), 'b': jnp.asarray([4.0])}
  _, state = tx.update(gradient, tx.init(params), params)
  adam = next(part for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(part, 'mu'))
  np.testing.assert_allclose(adam.mu['w'], [0.06, 0], rtol=1e-5)  # (1 - beta1) * gradient / norm
  np.testing.assert_allclose(adam.mu['b'], [0.08], rtol=1e-5)
  with pytest.raises(errors.SphinxError, match='optimizer.clip'):
    adamw(clip=0.0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_first_moment_has_the_dtype_asked_for(dtype):
  params = {'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(adamw(moment_dtype=dtype).init(params)) if leaf.ndim}
  assert dtypes == {dtype, 'float32'}


def test_moments_lie_as_their_parameters():
  mesh = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  layouts = {'w': NamedSharding(mesh, PartitionSpec('x')), 'b': NamedSharding(mesh, PartitionSpec())}
  params = {'w': jax.ShapeDtypeStruct((2, 2), jnp.float32), 'b': jax.ShapeDtypeStruct((2,), jnp.float32)}
  tx = adamw()
  found = optimizer.state_shardings(tx, params, layouts, layouts['b'])
  leaves = jax.tree.leaves(jax.tree.map(lambda leaf, layout: (leaf.shape, layout.spec), jax.eval_shape(tx.init, params), found),
                           is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], PartitionSpec))
  assert sorted(map(str, leaves)) == sorted(map(str, [((2, 2), PartitionSpec('x'))] * 2 + [((2,), PartitionSpec())] * 2 + [((), PartitionSpec())] * 2))
