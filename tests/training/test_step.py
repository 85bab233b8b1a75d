"""The update, with a model of one matrix, which compiles fast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.models.families import Forward
from sphinx_jax.training import loss_scale, optimizer, state, step

VOCAB, BATCH_SIZE, LENGTH = 7, 8, 5
RATE = lambda count: jnp.float32(0.1)


def apply(params: dict, batch: dict, key: None):
  hidden = jnp.take(params['frozen']['table'], batch['tokens'], axis=0) + params['trained']['b']
  return Forward(hidden, (params['trained']['w'],), {})


def batch(seed: int = 0) -> dict:
  rng = np.random.default_rng(seed)
  draw = lambda high: jnp.asarray(rng.integers(0, high, (BATCH_SIZE, LENGTH)), jnp.int32)
  weight = rng.random((BATCH_SIZE, LENGTH))
  weight[:2] = 0  # Microbatches get unequal weight.
  return {
    'tokens': draw(VOCAB),
    'targets': draw(VOCAB),
    'loss_weight': jnp.asarray(weight, jnp.float32),
    'task': draw(2),
    'segments': draw(3),
  }


def make(accumulate: int = 1, scaled: bool = False, apply=apply):
  rng = np.random.default_rng(1)
  trained = {
    'trained': {'w': jnp.asarray(rng.normal(size=(4, VOCAB)), jnp.float32), 'b': jnp.zeros(4)}
  }
  frozen = {'frozen': {'table': jnp.asarray(rng.normal(size=(VOCAB, 4)), jnp.bfloat16)}}
  axes = {'trained': {'w': ('embed', 'vocab'), 'b': ('embed',)}}
  tx = optimizer.make_optimizer('adamw', RATE, axes, (0.9, 0.95), 0.1, 1.0)
  tx = loss_scale.dynamic(tx) if scaled else tx
  begin = state.State(jnp.int32(0), trained, frozen, tx.init(trained))
  objective = step.likelihood(apply, 2)
  return begin, jax.jit(step.make_train_step(objective, tx, RATE, accumulate, scaled=scaled))


def run(accumulate: int, steps: int = 3):
  current, update = make(accumulate)
  for seed in range(steps):
    current, metrics = update(current, batch(seed))
  return current, metrics


def test_accumulated_microbatches_equal_one_large_batch():
  whole, metrics = run(1)
  for accumulate in (2, 4):
    accumulated, accumulated_metrics = run(accumulate)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, accumulated
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, accumulated_metrics
    )


def test_frozen_is_untouched_and_has_no_moments():
  begin, _ = make()
  end, _ = run(2)
  assert (
    np.asarray(begin.frozen['frozen']['table']).tobytes()
    == np.asarray(end.frozen['frozen']['table']).tobytes()
  )
  assert not np.array_equal(begin.trained['trained']['w'], end.trained['trained']['w'])
  assert sorted({leaf.shape for leaf in jax.tree.leaves(end.opt_state)}) == [
    (),
    (4,),
    (4, VOCAB),
  ]
  assert int(end.step) == 3


def test_metrics_count_examples_and_positions():
  current, update = make()
  fields = batch()
  _, metrics = update(current, fields)
  segments = np.asarray(fields['segments'])
  assert (
    metrics['examples'] == segments.max(axis=1).sum() and metrics['useful'] == (segments > 0).sum()
  )
  assert metrics['positions'] == BATCH_SIZE * LENGTH and metrics['learning_rate'] == pytest.approx(
    0.1
  )
  assert metrics['weight'] == pytest.approx(float(fields['loss_weight'].sum()))


def test_a_batch_without_weight_has_no_gradient():
  current, update = make()
  new, metrics = update(current, batch() | {'loss_weight': jnp.zeros((BATCH_SIZE, LENGTH))})
  assert metrics['loss'] == 0 and metrics['grad_norm'] == 0
  np.testing.assert_array_equal(new.trained['trained']['b'], current.trained['trained']['b'])


def test_evaluation_is_one_weighted_mean_over_all_batches():
  params = make()[0].params
  evaluate = step.make_eval_step(step.likelihood(apply, 2))
  losses = step.evaluate_loss(
    evaluate,
    params,
    {
      'both': [batch(0), batch(1)],
      'first': [batch(0)],
      'none': [batch() | {'loss_weight': jnp.zeros((BATCH_SIZE, LENGTH))}],
    },
  )
  first, second = (
    (sums['loss'], sums['weight']) for sums in (evaluate(params, batch(seed)) for seed in (0, 1))
  )
  assert losses['both'] == pytest.approx(float((first[0] + second[0]) / (first[1] + second[1])))
  assert losses['first'] == pytest.approx(float(first[0] / first[1])) and losses['none'] == 0


def test_a_scaled_loss_gives_the_same_update():
  plain, expected = run(2)
  current, update = make(2, scaled=True)
  for seed in range(3):
    current, metrics = update(current, batch(seed))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (current.trained, {name: metrics[name] for name in expected}),
    (plain.trained, expected),
  )
  assert int(metrics['skipped']) == 0 and metrics['loss_scale'] == loss_scale.FIRST


def half_apply(params: dict, batch: dict, key: None):
  hidden, matrices, _ = apply(params, batch, key)
  halved = tuple(matrix.astype(jnp.float16) for matrix in matrices)
  return Forward(hidden.astype(jnp.float16), halved, {})


def routed_apply(params: dict, batch: dict, key: None):
  """A penalty with the gradient 0.5 for every bias, whatever the batch."""
  router = {'balance': params['trained']['b'].sum(), 'share': jnp.array([0.25, 0.75])}
  router['penalty'] = 0.5 * router['balance']
  return apply(params, batch, key)._replace(router=router)


def test_a_penalty_is_added_to_the_mean_loss_however_the_batch_is_divided():
  def gradients(**options):
    begin, update = make(**options)
    new, metrics = update(begin, batch())
    state_of_adam = new.opt_state.inner if options.get('scaled') else new.opt_state
    (moments,) = (
      part for part in jax.tree.leaves(state_of_adam, is_leaf=_is_adam) if _is_adam(part)
    )
    return moments.mu['trained']['b'] / 0.1 * jnp.maximum(metrics['grad_norm'], 1), metrics

  plain, _ = gradients()
  for options in ({}, {'accumulate': 4}, {'scaled': True}):
    got, metrics = gradients(apply=routed_apply, **options)
    np.testing.assert_allclose(got - plain, 0.5, rtol=1e-4)
    assert metrics['mean/router/share_1'] / metrics['weight'] == pytest.approx(0.75)
  evaluate = step.make_eval_step(step.likelihood(routed_apply, 2))
  begin, _ = make()
  assert evaluate(begin.params, batch()).keys() == {'loss', 'weight'}


def _is_adam(part: object) -> bool:
  return hasattr(part, 'mu')


def test_gradients_that_overflow_skip_the_update_and_halve_the_scale():
  begin, update = make(scaled=True, apply=half_apply)
  scaled = begin.opt_state._replace(scale=jnp.float32(2.0**30))
  begin = state.State(begin.step, begin.trained, begin.frozen, scaled)
  skipped, metrics = update(begin, batch())
  jax.tree.map(np.testing.assert_array_equal, skipped.trained, begin.trained)
  jax.tree.map(
    np.testing.assert_array_equal,
    skipped.opt_state.inner.inner_state,
    begin.opt_state.inner.inner_state,
  )
  assert metrics['skipped'] == 1 and metrics['grad_norm'] == 0 and np.isfinite(metrics['loss'])
  assert metrics['loss_scale'] == skipped.opt_state.scale == 2.0**29 and int(skipped.step) == 1
  while metrics['skipped']:
    skipped, metrics = update(skipped, batch())
  assert 2.0**15 < metrics['loss_scale'] < 2.0**29
  assert not np.array_equal(skipped.trained['trained']['w'], begin.trained['trained']['w'])
  assert metrics['grad_norm'] == pytest.approx(
    float(make()[1](make()[0], batch())[1]['grad_norm']), rel=2e-3
  )


def test_many_good_updates_double_the_scale_and_overflow_at_the_least_is_shown():
  begin, update = make(scaled=True, apply=half_apply)
  at = lambda **changes: state.State(
    begin.step, begin.trained, begin.frozen, begin.opt_state._replace(**changes)
  )
  grown, _ = update(at(good=jnp.int32(loss_scale.INTERVAL - 1)), batch())
  assert grown.opt_state.scale == 2 * loss_scale.FIRST and grown.opt_state.good == 0
  spoiled = batch() | {'loss_weight': batch()['loss_weight'].at[3].set(jnp.inf)}
  _, metrics = update(at(scale=jnp.float32(loss_scale.LEAST)), spoiled)
  assert metrics['loss_scale'] == loss_scale.LEAST and not np.isfinite(metrics['grad_norm'])
