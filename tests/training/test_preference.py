"""DPO, with a model of a table and a frozen matrix, which compiles fast."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.models.families import Forward
from sphinx_jax.training import loss, preference

VOCAB, WIDTH, LENGTH, TASKS, BETA = 11, 4, 16, 3, 0.3
# Lengths of the answers (chosen, rejected) of the pairs of every row.
ROWS = (((1, 3), (2, 2)), ((4, 1),), ())


def apply(params: dict, batch: dict, key: None):
  hidden = jnp.take(params['table'], batch['tokens'], axis=0)
  if 'lora_a' in params:
    hidden += params['lora_scale'] * hidden @ params['lora_a'] @ params['lora_b']
  matrix = params['matrix']
  if 'lora_b' in params:  # The LM head has an adapter, too.
    matrix = matrix * (1 + params['lora_b'].sum())
  return Forward(hidden, (matrix,), {})


def make_params(is_fresh: bool = False) -> dict:
  rng = np.random.default_rng(0)
  shapes = dict(table=(VOCAB, WIDTH), matrix=(WIDTH, VOCAB), lora_a=(WIDTH, 2), lora_b=(2, WIDTH))
  params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
  params['lora_b'] *= not is_fresh
  return params | {'lora_scale': jnp.float32(2)}


def make_batch(rows=ROWS) -> dict:
  """Segments of BOS, which has no weight, and an answer. They depend on their place in `rows`."""
  fields = ('tokens', 'targets', 'loss_weight', 'segments', 'task')
  batch = {name: np.zeros((len(rows), LENGTH), np.int32) for name in fields}
  for b, pairs in enumerate(rows):
    begin = 0
    for segment, length in enumerate([n for pair in pairs for n in pair], 1):
      rng = np.random.default_rng((length, segment % 2))
      end = begin + 1 + length
      ids = rng.integers(1, VOCAB, length + 1)
      batch['tokens'][b, begin:end] = ids
      batch['targets'][b, begin : end - 1] = ids[1:]
      batch['loss_weight'][b, begin : end - 1] = 1
      batch['segments'][b, begin:end] = segment
      batch['task'][b, begin:end] = length % TASKS
      begin = end
  batch['loss_weight'] = batch['loss_weight'].astype(np.float32)
  return batch


def plain_answers(params: dict, batch: dict) -> list:
  """Log-probabilities of the answers of every pair in turn."""
  hidden, (matrix,), _ = apply(params, batch, None)
  logp = jax.nn.log_softmax(hidden @ matrix)
  logp = jnp.take_along_axis(logp, batch['targets'][..., None], axis=-1)[..., 0]
  return [
    [
      jnp.where(batch['segments'][b] == segment, logp[b] * batch['loss_weight'][b], 0).sum()
      for segment in (first, first + 1)
    ]
    for b, pairs in enumerate(ROWS)
    for first in range(1, 2 * len(pairs), 2)
  ]


def plain_margins(params: dict, batch: dict) -> list:
  reference = {name: params[name] for name in ('table', 'matrix')}
  return [
    BETA * ((policy[0] - base[0]) - (policy[1] - base[1]))
    for policy, base in zip(plain_answers(params, batch), plain_answers(reference, batch))
  ]


@jax.jit
@jax.grad
def plain_gradient(adapter: dict, base: dict, batch: dict):
  return sum(-jax.nn.log_sigmoid(margin) for margin in plain_margins(base | adapter, batch))


@functools.partial(jax.jit, static_argnums=3)
@functools.partial(jax.grad, has_aux=True)
def gradient_and_sums(adapter: dict, base: dict, batch: dict, chunk: int):
  sums = preference.objective(apply, TASKS, BETA, chunk).sums(base | adapter, batch, None)
  return sums['loss'], sums


def computed(batch: dict, chunk: int = 0, is_fresh: bool = False) -> tuple[dict, dict]:
  """Gradient by the adapter, and sums."""
  return gradient_and_sums(*split(make_params(is_fresh)), batch, chunk)


def split(params: dict) -> tuple[dict, dict]:
  """Adapter and base."""
  trained = {name: params[name] for name in ('lora_a', 'lora_b')}
  return trained, {name: leaf for name, leaf in params.items() if name not in trained}


@pytest.mark.parametrize('chunk', [0, 5])
def test_loss_and_gradient_are_those_of_plain_code(chunk):
  params, batch = make_params(), make_batch()
  gradient, sums = computed(batch, chunk)
  margins = np.array(jax.jit(plain_margins)(params, batch))
  losses = np.log1p(np.exp(-margins))
  assert preference.objective(apply, TASKS, BETA).weight(batch) == sums['weight'] == 3
  np.testing.assert_allclose(sums['loss'], losses.sum(), rtol=1e-5)
  np.testing.assert_allclose(sums[f'{loss.MEAN}reward_margin'], margins.sum(), rtol=1e-4)
  assert sums[f'{loss.MEAN}accuracy'] == (margins > 0).sum() and 0 < (margins > 0).sum() < 3
  answers = np.array(jax.jit(plain_answers)(params, batch))
  for i, name in enumerate(('chosen', 'rejected')):
    np.testing.assert_allclose(sums[f'{loss.MEAN}logp_{name}'], answers[:, i].sum(), rtol=1e-5)
  tasks = np.array([1, 2, 1])  # The length of the chosen answer, modulo 3.
  for task in range(TASKS):
    np.testing.assert_allclose(sums['task_loss'][task], losses[tasks == task].sum(), rtol=1e-5)
    assert sums['task_weight'][task] == (tasks == task).sum()
  expected = plain_gradient(*split(params), batch)
  assert np.abs(expected['lora_b']).max() > 0.1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, expected
  )


def test_fresh_adapters_have_the_loss_log_2_and_no_margin():
  _, sums = computed(make_batch(), is_fresh=True)
  assert sums[f'{loss.MEAN}reward_margin'] == 0 and sums[f'{loss.MEAN}accuracy'] == 0
  assert sums['loss'] / sums['weight'] == pytest.approx(np.log(2), abs=1e-7)


def test_rows_of_one_pair_each_have_the_sums_of_packed_rows():
  packed = computed(make_batch())
  single = computed(make_batch([(pair,) for row in ROWS for pair in row]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), packed, single)


def test_a_batch_without_pairs_has_loss_zero_and_no_gradient():
  gradient, sums = computed(make_batch([()] * 3))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves((gradient, sums)))
