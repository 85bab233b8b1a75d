"""The mixture of experts against recorded layers of the official code, and its kernels."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.models import experts, families, grouped, quantized
from tests.generate import golden
from tests.models import small

RECORDED = np.load(golden.FOLDER / 'forward/moe_layer.npz')
FACTS = json.loads((golden.FOLDER / 'forward/moe_layer.json').read_text())
KERNELS = [*grouped.KERNELS]
# Rows, and rows of each group: groups without rows, rows beyond the last group, few rows.
SIZES = {
  'uneven': (100, (10, 0, 50, 30)),
  'few': (9, (0, 4, 0, 3)),
  'one': (300, (0, 0, 300, 0)),
  'long': (700, (200, 100, 0, 399)),
}


@pytest.mark.parametrize('form', ['kernel', 'int8', 'nf4'])
@pytest.mark.parametrize('case', SIZES)
def test_every_kernel_is_a_loop_over_the_matrices(case, form):
  rows, sizes = SIZES[case]
  rng = np.random.default_rng(0)
  x, weight = (rng.normal(size=(rows, n)).astype(np.float32) for n in (24, 40))
  leaves = {'kernel': rng.normal(size=(4, 24, 40)).astype(np.float32)}
  if form != 'kernel':
    leaves = jax.vmap(functools.partial(quantized.quantize, form=form))(leaves['kernel'])
  trained = {name: leaf for name, leaf in leaves.items() if name == 'kernel'}
  is_row = np.arange(rows)[:, None] < sum(sizes)

  def outputs(x, trained, kernel):
    out = grouped.product(x, {**leaves, **trained}, jnp.array(sizes), kernel)
    out = jnp.where(is_row, out, 0)
    return (out * weight).sum(), out

  run = jax.jit(jax.grad(outputs, (0, 1), has_aux=True), static_argnums=2)
  expected = run(x, trained, 'loop')
  for kernel in KERNELS[:-1]:
    for got, want in zip(*map(jax.tree.leaves, (run(x, trained, kernel), expected)), strict=True):
      np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
  if trained:
    assert not np.any(expected[0][1]['kernel'][np.array(sizes) == 0])


def layer(case, kernel, dtype=jnp.float32):
  """The module and the parameters of a recorded layer."""
  facts, recorded = (
    FACTS[case],
    {key: RECORDED[f'{case}/{key}'] for key in ('gate', 'w1', 'w2', 'w3')},
  )
  count, width, hidden = (facts[name] for name in ('experts', 'dim', 'hidden'))
  stacks = {name: recorded[name].reshape(count, hidden, width) for name in ('w1', 'w2', 'w3')}
  params = {
    'gate': {'kernel': recorded['gate'].T},
    'w1': {'kernel': stacks['w1'].swapaxes(1, 2)},
    'w2': {'kernel': stacks['w2']},
    'w3': {'kernel': stacks['w3'].swapaxes(1, 2)},
  }
  return experts.Experts(hidden, count, facts['top_k'], 1.0, kernel, True, dtype), params


def run(case, kernel, dtype=jnp.float32):
  """Output, balancing loss and choices of a recorded layer, and the recorded gradients."""
  module, params = layer(case, kernel, dtype)
  weight = RECORDED[f'{case}/out_grad']

  def total(params, x):
    out, records = module.apply({'params': params}, x, mutable=[experts.ROUTER, experts.CHOICES])
    loss = records[experts.ROUTER]['balance']
    return (out * weight).sum() + 0.1 * loss, (out, loss, records[experts.CHOICES])

  x = jnp.asarray(RECORDED[f'{case}/x'], dtype)
  gradients, aux = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x)
  return *aux, gradients


# All kernels compute one recorded layer; the others go through that of a CPU.
CASES = [
  *(('empty_experts', kernel) for kernel in KERNELS),
  *((case, 'blocks') for case in ('plain', 'one_token', 'eight_experts', 'top1', 'top3_of_3')),
]


@pytest.mark.parametrize('case, kernel', CASES)
def test_a_layer_is_the_official_one(case, kernel):
  out, loss, choices, (of_params, of_x) = run(case, kernel)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-6)
  recorded = lambda key: RECORDED[f'{case}/{key}']
  np.testing.assert_array_equal(
    np.sort(choices['index'][0]), np.sort(recorded('index').reshape(choices['index'][0].shape))
  )
  close(choices['logits'].reshape(recorded('router_logits').shape), recorded('router_logits'))
  close(out, recorded('y'))
  close(loss, FACTS[case]['aux'])
  close(of_x, recorded('grad_x'))
  close(of_params['gate']['kernel'].T, recorded('grad_gate'))
  width = FACTS[case]['dim']
  close(of_params['w2']['kernel'].reshape(-1, width), recorded('grad_w2'))
  for name in ('w1', 'w3'):
    close(of_params[name]['kernel'].swapaxes(1, 2).reshape(-1, width), recorded(f'grad_{name}'))


def test_a_layer_in_bfloat16_is_near_the_official_one():
  out, loss, _, (_, of_x) = run('bfloat16', 'blocks', jnp.bfloat16)
  np.testing.assert_allclose(out.astype(np.float32), RECORDED['bfloat16/y'], rtol=0, atol=4e-2)
  np.testing.assert_allclose(of_x.astype(np.float32), RECORDED['bfloat16/grad_x'], rtol=0, atol=0.2)
  assert float(loss) == pytest.approx(FACTS['bfloat16']['aux'], abs=1e-2)


def test_equal_logits_count_as_the_recorded_choices():
  """torch chooses among equal logits in no documented order; the loss follows from the choices."""
  logits = jnp.asarray(RECORDED['tie/router_logits']).reshape(1, -1, FACTS['tie']['experts'])
  routes = experts.route(logits, FACTS['tie']['top_k'])
  routes = routes._replace(index=RECORDED['tie/index'].reshape(routes.index.shape))
  assert float(experts.balance(routes, None)[0]) == pytest.approx(FACTS['tie']['aux'], abs=1e-6)


def test_padding_counts_only_if_asked_for():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), jnp.float32)
  real = np.array([[1] * 6, [1, 1, 0, 0, 0, 0]], bool)
  loss, share = experts.balance(experts.route(logits, 2), real)
  alone = experts.balance(experts.route(logits[real][None], 2), None)
  np.testing.assert_allclose(loss, alone[0], rtol=1e-6)
  np.testing.assert_allclose(share, alone[1], rtol=1e-6)
  assert float(share.sum()) == pytest.approx(1)
  assert abs(float(experts.balance(experts.route(logits, 2), None)[0] - loss)) > 1e-3


def test_more_choices_than_experts_are_refused():
  llm = dict(name='mixtral', vocab=50, width=16, layers=1, heads=2, hidden=8, experts=2)
  with pytest.raises(errors.SphinxError, match='experts_per_token 3 of 2 experts'):
    families.abstract_params(small.light(llm=llm | dict(experts_per_token=3)))


def test_an_unknown_kernel_is_named():
  with pytest.raises(errors.SphinxError, match="grouped products: got 'rugged'.*'ragged'"):
    grouped.choose('rugged', 'cpu')
  assert [grouped.choose('auto', platform) for platform in ('cpu', 'gpu', 'tpu')] == [
    'blocks',
    'ragged',
    'ragged',
  ]
