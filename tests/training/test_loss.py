import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sphinx_jax.models.adapters import Adapted
from sphinx_jax.planning import flops
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


def sums_of(logits: jax.Array, fields: dict) -> dict:
  """The sums of given logits: the matrix of the LM head is the identity."""
  return loss.sums(logits, (jnp.eye(logits.shape[-1]),), fields, tasks=3)


def test_the_mean_is_weighted_and_tasks_add_up():
  logits, fields = batch()
  sums = sums_of(logits, fields)
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
    sums = sums_of(logits, fields)
    return loss.mean(sums['loss'], sums['weight'])

  number, gradient = jax.value_and_grad(value)(logits)
  assert number == 0 and not np.any(gradient)


def test_unweighted_positions_get_no_gradient():
  logits, fields = batch()
  gradient = jax.grad(lambda logits: sums_of(logits, fields)['loss'])(logits)
  changed = np.abs(gradient).max(axis=-1) > 0
  np.testing.assert_array_equal(changed, np.asarray(fields['loss_weight']) > 0)
  assert 0 < changed.sum() < changed.size


def test_mean_of_huge_logits_is_finite():
  logits = jnp.asarray([[[1e4, -1e4]]], jnp.float32)
  assert loss.cross_entropy(logits, jnp.zeros((1, 1), jnp.int32))[0, 0] == pytest.approx(0)


VOCAB, WIDTH, ROWS, LENGTH = 1000, 16, 4, 64


def example(share: float, seed: int = 0) -> tuple[jax.Array, jax.Array, dict]:
  """Hidden states, matrix and fields of rows with a share of labelled positions."""
  rng = np.random.default_rng(seed)
  hidden, matrix = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((ROWS, LENGTH, WIDTH), (WIDTH, VOCAB))
  )
  integers = lambda end: jnp.asarray(rng.integers(0, end, (ROWS, LENGTH)), jnp.int32)
  weight = rng.uniform(0.5, 2, (ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < share)
  fields = {'targets': integers(VOCAB), 'task': integers(3), 'loss_weight': jnp.asarray(weight)}
  return hidden, matrix, fields


def plain(hidden: jax.Array, matrix: jax.Array, fields: dict) -> tuple[jax.Array, dict]:
  """The sums without chunks, order or a gradient of their own."""
  losses = fields['loss_weight'] * optax.softmax_cross_entropy_with_integer_labels(
    hidden @ matrix, fields['targets']
  )
  by_task = lambda field: jnp.stack([field[fields['task'] == k].sum() for k in range(3)])
  return losses.sum(), {
    'loss': losses.sum(),
    'weight': fields['loss_weight'].sum(),
    'task_loss': by_task(losses),
    'task_weight': by_task(fields['loss_weight']),
  }


def compiled(chunk: int, argnums: tuple[int, ...] = (0, 1)):
  """The program (hidden, matrix, fields) -> ((loss, sums), gradients)."""

  def value(hidden, matrix, fields):
    sums = loss.sums(hidden, (matrix,), fields, 3, chunk)
    return sums['loss'], sums

  gradient = jax.jit(jax.value_and_grad(value, argnums=argnums, has_aux=True))
  return gradient.lower(*example(1)).compile()


@pytest.fixture(scope='module')
def in_chunks():
  return compiled(8)


def close(a, b):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), a, b)


@pytest.mark.parametrize('share', [0, 0.02, 0.4, 1])
def test_chunks_give_the_loss_and_gradients_of_all_positions(in_chunks, share):
  arguments = example(share)
  expected = jax.value_and_grad(plain, argnums=(0, 1), has_aux=True)(*arguments)
  close(in_chunks(*arguments), expected)


@pytest.mark.parametrize('chunk', [0, 24])
def test_all_positions_at_once_and_chunks_that_do_not_divide_them_give_the_same(chunk):
  program = compiled(chunk)
  for share in (0.4, 1):
    arguments = example(share)
    expected = jax.value_and_grad(plain, argnums=(0, 1), has_aux=True)(*arguments)
    close(program(*arguments), expected)


def test_rows_may_differ_in_their_labels(in_chunks):
  """One row is all labels, the others have none."""
  hidden, matrix, fields = example(1)
  fields['loss_weight'] = fields['loss_weight'].at[1:].set(0)
  (_, sums), (of_hidden, of_matrix) = in_chunks(hidden, matrix, fields)
  (_, expected), gradients = jax.value_and_grad(plain, argnums=(0, 1), has_aux=True)(
    hidden, matrix, fields
  )
  close((sums, of_hidden, of_matrix), (expected, *gradients))
  assert not np.any(of_hidden[1:]) and np.any(of_hidden[0])


def test_chunks_hold_few_logits(in_chunks):
  peak = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
  logits = ROWS * LENGTH * VOCAB * 4
  assert peak(compiled(0)) > 2 * logits and peak(in_chunks) < logits


def test_a_frozen_matrix_gets_no_gradient(in_chunks):
  """Its product is not computed."""
  flops = lambda program: program.cost_analysis()['flops']
  frozen, arguments = compiled(8, argnums=(0,)), example(0.4)
  close(frozen(*arguments)[1][0], in_chunks(*arguments)[1][0])
  assert flops(frozen) < 0.75 * flops(in_chunks)


def test_blocks_of_columns_give_the_loss_of_the_whole_matrix(in_chunks):
  """A frozen block costs no gradient; the one beside it has its own."""
  hidden, matrix, fields = example(0.4)
  old, new = matrix[:, :-4], matrix[:, -4:]

  def value(hidden, new):
    sums = loss.sums(hidden, (old, new), fields, 3, 8)
    return sums['loss'], sums

  blocks = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True)).lower(hidden, new)
  found, (of_hidden, of_new) = blocks.compile()(hidden, new)
  expected, (of_hidden_of_whole, of_matrix) = in_chunks(hidden, matrix, fields)
  close((found, of_hidden, of_new), (expected, of_hidden_of_whole, of_matrix[:, -4:]))


def test_an_adapter_gives_the_loss_of_the_merged_matrix_without_a_gradient_of_its_size():
  hidden, kernel, fields = example(0.4)
  rng = np.random.default_rng(1)
  a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((WIDTH, 2), (2, VOCAB)))
  new = jnp.asarray(rng.normal(size=(WIDTH, 4)), jnp.float32)

  def merged(hidden, a, b, new):
    return plain(hidden, jnp.concatenate([kernel + a @ b, new], axis=1), fields)[0]

  expected = jax.value_and_grad(merged, argnums=(0, 1, 2, 3))(hidden, a, b, new)
  for chunk, losses in ((0, loss.sums), (8, loss.sums), (8, per_position)):

    def value(hidden, a, b, new, losses=losses, chunk=chunk):
      return losses(hidden, (Adapted(kernel, a, b), new), fields, 3, chunk)['loss']

    gradient = jax.value_and_grad(value, argnums=(0, 1, 2, 3))
    found = jax.jit(gradient)(hidden, a, b, new)
    close(found, expected)
    shapes = {out.aval.shape[-2:] for out in outputs(jax.make_jaxpr(gradient)(hidden, a, b, new))}
    assert (2, VOCAB) in shapes and kernel.shape not in shapes


@pytest.mark.parametrize('chunk', [0, 8])
def test_a_fresh_adapter_changes_no_bit(chunk):
  hidden, kernel, fields = example(0.4)
  fresh = Adapted(kernel, jnp.ones((WIDTH, 2)), jnp.zeros((2, VOCAB)))
  sums = jax.jit(lambda matrix: loss.sums(hidden, (matrix,), fields, 3, chunk))
  jax.tree.map(np.testing.assert_array_equal, sums(fresh), sums(kernel))


def per_position(hidden, matrices, fields, tasks, chunk):
  """The loss of `loss.sums` of `loss.per_position`."""
  losses = loss.per_position(hidden, matrices, fields, chunk)
  return {'loss': (losses * fields['loss_weight']).sum()}


def outputs(jaxpr):
  """What all equations of a jaxpr give, also those in loops."""
  for eqn in jaxpr.eqns:
    yield from eqn.outvars
    for inner in flops.inner_jaxprs(eqn.params):
      yield from outputs(inner)
