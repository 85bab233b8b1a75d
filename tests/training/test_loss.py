import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sphinx_jax.training import loss


def batch(seed: int = 0) -> tuple[jax.Array, dict]:
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(2, 5, 7)), jnp.float32), {
    'targets': jnp.asarray(rng.integers(0, 7, (2, 5)), jnp.int32),
    'task': jnp.asarray(rng.integers(0, 3, (2, 5)), jnp.int32),
    'loss_weight': jnp.asarray(rng.integers(0, 3, (2, 5)), jnp.float32),
  }


def test_cross_entropy_is_that_of_optax():
  logits, fields = batch()
  expected = optax.softmax_cross_entropy_with_integer_labels(logits, fields['targets'])
  np.testing.assert_allclose(loss.cross_entropy(logits, fields['targets']), expected, rtol=1e-5)
  assert loss.cross_entropy(logits.astype(jnp.bfloat16), fields['targets']).dtype == jnp.float32


def test_the_mean_is_weighted_and_tasks_add_up():
  logits, fields = batch()
  sums = loss.sums(logits, fields, tasks=3)
  per_token = np.asarray(loss.cross_entropy(logits, fields['targets']))
  np.testing.assert_allclose(
    loss.mean(sums['loss'], sums['weight']),
    np.average(per_token, weights=fields['loss_weight']),
    rtol=1e-5,
  )
  for task in range(3):
    weight = np.asarray(fields['loss_weight']) * (np.asarray(fields['task']) == task)
    np.testing.assert_allclose(
      sums['task_loss'][task], (weight * per_token).sum(), rtol=1e-5, atol=1e-6
    )
    assert sums['task_weight'][task] == weight.sum()
  np.testing.assert_allclose(sums['task_loss'].sum(), sums['loss'], rtol=1e-5)


def test_a_batch_without_weight_has_loss_zero_and_no_gradient():
  logits, fields = batch()
  fields['loss_weight'] *= 0

  def value(logits):
    sums = loss.sums(logits, fields, 3)
    return loss.mean(sums['loss'], sums['weight'])

  number, gradient = jax.value_and_grad(value)(logits)
  assert number == 0 and not np.any(gradient)


def test_unweighted_positions_get_no_gradient():
  logits, fields = batch()
  gradient = jax.grad(lambda logits: loss.sums(logits, fields, 3)['loss'])(logits)
  changed = np.abs(gradient).max(axis=-1) > 0
  np.testing.assert_array_equal(changed, np.asarray(fields['loss_weight']) > 0)
  assert 0 < changed.sum() < changed.size


def test_mean_of_huge_logits_is_finite():
  logits = jnp.asarray([[[1e4, -1e4]]], jnp.float32)
  assert loss.cross_entropy(logits, jnp.zeros((1, 1), jnp.int32))[0, 0] == pytest.approx(0)


def chunked(chunk: int):
  """The compiled loss with gradients of hidden states and LM head, and its arguments."""
  rng = np.random.default_rng(0)
  hidden, kernel = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 64, 16), (16, 1000))
  )
  integers = lambda end: jnp.asarray(rng.integers(0, end, (4, 64)), jnp.int32)
  fields = {
    'targets': integers(1000),
    'task': integers(3),
    'loss_weight': integers(3).astype(jnp.float32),
  }

  def value(hidden, kernel):
    sums = loss.chunked_sums(hidden, lambda part: part @ kernel, fields, 3, chunk)
    return sums['loss'], sums

  gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
  return gradient.lower(hidden, kernel).compile(), (hidden, kernel)


def test_chunks_give_the_same_loss_and_gradients_in_less_memory():
  whole, arguments = chunked(0)
  in_chunks, _ = chunked(8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    in_chunks(*arguments),
    whole(*arguments),
  )
  peak = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
  logits = 4 * 64 * 1000 * 4
  assert peak(whole) > 2 * logits and peak(in_chunks) < logits
