import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sphinx_jax.core import errors
from sphinx_jax.training import optimizer

AXES = {
  'norm': {'scale': ('layers', 'embed')},
  'qkv': {'bias': (None, 'heads'), 'kernel': ('layers', 'embed', 'heads')},
  'start': ('embed',),
  'embed': ('vocab', 'embed'),
}


def make(name='adamw', **changes) -> optax.GradientTransformation:
  settings = dict(
    name=name,
    rate=lambda count: 0.1,
    logical_axes={'kernel': ('embed', 'heads'), 'bias': ('embed',)},
    betas=(0.9, 0.95),
    weight_decay=0.5,
    clip=1e9,
  )
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


def test_only_matrices_decay_also_in_stacks_of_layers():
  assert optimizer.decay_mask(AXES) == {
    'norm': {'scale': False},
    'qkv': {'bias': False, 'kernel': True},
    'start': False,
    'embed': True,
  }


@pytest.mark.parametrize('name', optimizer.NAMES)
def test_decay_without_gradient_shrinks_only_what_decays(name):
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  tx = make(name)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -0.05)  # rate * weight_decay
  np.testing.assert_array_equal(updates['bias'], 0)


def test_gradients_over_the_norm_are_scaled_together():
  tx = make(clip=1.0, weight_decay=0.0)
  params = {'kernel': jnp.zeros((2, 1)), 'bias': jnp.zeros(1)}
  gradient = {'kernel': jnp.asarray([[3.0], [0.0]]), 'bias': jnp.asarray([4.0])}
  _, state = tx.update(gradient, tx.init(params), params)
  adam = next(
    part
    for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, 'mu'))
    if hasattr(part, 'mu')
  )
  # (1 - beta1) * gradient / norm
  np.testing.assert_allclose(adam.mu['kernel'], [[0.06], [0]], rtol=1e-5)
  np.testing.assert_allclose(adam.mu['bias'], [0.08], rtol=1e-5)
  with pytest.raises(errors.SphinxError, match='optimizer.clip'):
    make(clip=0.0)


def test_an_unknown_name_gets_the_choices():
  with pytest.raises(
    errors.SphinxError,
    match="optimizer.name: got 'adam', expected one of adamw, muon; did you mean 'adamw'",
  ):
    make('adam')


def test_muon_moves_each_matrix_of_a_stack_equally_in_all_directions():
  axes = {'kernel': ('layers', 'embed', None, 'heads'), 'embed': ('vocab', 'embed')}
  settings = dict(logical_axes=axes, weight_decay=0.0, betas=(0.9, 0.99))
  draw = lambda shape, seed: jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )
  params = {'kernel': draw((2, 6, 3, 4), 0), 'embed': draw((8, 6), 1)}
  gradient = {'kernel': draw((2, 6, 3, 4), 2), 'embed': draw((8, 6), 3)}
  tx = make('muon', **settings)
  updates, _ = tx.update(gradient, tx.init(params), params)
  moved = {name: -update / 0.1 for name, update in updates.items()}
  for matrix in np.moveaxis(moved['kernel'], 2, 1).reshape(-1, 6, 4):
    sizes = np.linalg.svd(matrix, compute_uv=False)
    assert sizes.max() < 2 * sizes.min()
    root_mean_square = np.sqrt(np.square(matrix).mean())
    assert root_mean_square == pytest.approx(0.2, rel=0.3)  # About the size of AdamW's steps.
  # AdamW moves the vocabulary. Its first step has the same size everywhere.
  size = np.abs(moved['embed'])
  np.testing.assert_allclose(size, size[0, 0], rtol=1e-4)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_first_moment_has_the_configured_dtype(dtype):
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  dtypes = {
    leaf.dtype.name for leaf in jax.tree.leaves(make(moment_dtype=dtype).init(params)) if leaf.ndim
  }
  assert dtypes == {dtype, 'float32'}


@pytest.mark.parametrize('name, moments', [('adamw', 2), ('muon', 1)])
def test_moments_are_sharded_like_their_parameters(name, moments):
  mesh = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  shardings = {
    'kernel': NamedSharding(mesh, PartitionSpec('x')),
    'bias': NamedSharding(mesh, PartitionSpec()),
  }
  params = {
    'kernel': jax.ShapeDtypeStruct((2, 2), jnp.float32),
    'bias': jax.ShapeDtypeStruct((2,), jnp.float32),
  }
  tx = make(name)
  result = optimizer.state_shardings(tx, params, shardings, shardings['bias'])
  shapes = jax.tree.leaves(jax.eval_shape(tx.init, params))
  specs = [sharding.spec for sharding in jax.tree.leaves(result)]
  assert sum(leaf.shape == (2, 2) for leaf in shapes) == moments
  assert sum(leaf.shape == (2,) for leaf in shapes) == 2
  expected = [PartitionSpec('x') if leaf.shape == (2, 2) else PartitionSpec() for leaf in shapes]
  assert specs == expected
