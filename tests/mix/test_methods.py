"""The methods of mixing: their laws, small cases by hand, and the numbers of mergekit."""

import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import dare, linear, methods, order, weights
from sphinx_jax.mix.tensors import Part, Tensor

RECORDED = np.load(pathlib.Path(__file__).parent.parent / 'golden' / 'mergekit' / 'recorded.npz')
WEIGHTS = (0.5, 0.3, 0.9)
BASED = [name for name, method in methods.METHODS.items() if method.base == 'required']


def mix(values, coefficients, base=None, method='linear', stacked=None, **options):
  """The mix of single leaves, as numpy."""
  trees = [{'w': jnp.asarray(value)} for value in values]
  mixed = weights.mix(
    trees,
    coefficients,
    base=None if base is None else {'w': jnp.asarray(base)},
    method=method,
    options=options,
    stacked={'w': stacked or 0},
  )
  return np.asarray(mixed['w'])


def drawn(seed, shape=(6, 7), dtype=np.float32):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_ties_trims_elects_and_merges():
  base = np.float32([1, 1, 1, 1, 1])
  a = base + np.float32([4, -3, 0.5, 2, 0])  # 0.6 of 5 are kept: 4, -3, 2.
  b = base + np.float32([2, 5, -6, -1, 0.5])  # 2, 5, -6.
  # Signs: +, +, -, +; the last has no vote. Means of what agrees: (4 + 2) / 2, 5, -6, 2, 0.
  mixed = mix([a, b], (1, 1), base, 'ties', density=0.6)
  np.testing.assert_allclose(mixed, base + np.float32([3, 5, -6, 2, 0]))
  mixed = mix([a, b], (3, 1), base, 'ties', **{'density': 0.6, 'lambda': 0.5})
  # Signs of 3 a + b: +, -, -, +.
  np.testing.assert_allclose(mixed, base + 0.5 * np.float32([14 / 4, -3, -6, 2, 0]))


def test_ties_keeps_all_of_the_smallest_magnitude_that_is_kept():
  base = np.zeros(6, np.float32)
  mixed = mix([base + np.float32([1, -1, 1, 1, 0, 3])], (1,), base, 'ties', density=0.34)
  np.testing.assert_array_equal(mixed, [1, -1, 1, 1, 0, 3])


def test_breadcrumbs_leave_out_the_largest_and_the_smallest():
  base = np.full(10, 2, np.float32)
  a = base + np.float32([1, -2, 3, -4, 5, -6, 7, -8, 9, -10])
  mixed = mix([a], (2,), base, 'breadcrumbs', density=0.5, gamma=0.2)
  np.testing.assert_allclose(mixed, base + 2 * np.float32([0, 0, 0, -4, 5, -6, 7, -8, 0, 0]))


def test_model_stock_goes_to_the_closest_point_of_the_mean():
  base = np.float32([[1, 1], [1, 1]])
  a, b = base + np.float32([[3, 0], [0, 0]]), base + np.float32([[1, 1], [0, 0]])
  cosine = 1 / np.sqrt(2)
  share = 2 * cosine / (1 + cosine)
  mixed = mix([a, b], (0.5, 0.5), base, 'model_stock')
  np.testing.assert_allclose(mixed, share * (a + b) / 2 + (1 - share) * base, rtol=1e-6)
  # Opposite differences have no finite share.
  np.testing.assert_array_equal(mix([a, 2 * base - a], (1, 1), base, 'model_stock'), base)
  np.testing.assert_array_equal(mix([a, b], (0, 1), base, 'model_stock'), b)


@pytest.mark.parametrize('method, elects', [('dare_linear', False), ('dare_ties', True)])
def test_dare_drops_and_rescales(method, elects):
  base, a, b = (drawn(seed, (5, 9)) for seed in range(3))
  masks = [
    dare.kept(key, 0, 45, 0.4).reshape(5, 9)
    for key in dare.measure(Tensor('w', 45, [0, 1], (1, 1), tuple), {'seed': 7})
  ]
  kept = [np.where(mask, (leaf - base) / np.float32(0.4), 0) for mask, leaf in zip(masks, (a, b))]
  merged = 2 * kept[0] + kept[1]
  if elects:
    agree = [(np.sign(value) == np.sign(merged)) & (value != 0) for value in kept]
    weight = 2.0 * agree[0] + agree[1]
    merged = (2 * kept[0] * agree[0] + kept[1] * agree[1]) / np.where(weight, weight, 1)
  mixed = mix([a, b], (2, 1), base, method, density=0.4, seed=7)
  np.testing.assert_allclose(mixed, base + merged, rtol=1e-5, atol=1e-6)
  assert 0.2 < np.mean(masks) < 0.6 and (masks[0] != masks[1]).any()
  other = mix([a, b], (2, 1), base, method, density=0.4, seed=8)
  assert (other != mixed).any()


def test_dare_is_right_in_the_mean():
  base, a, b = (drawn(seed, (64,)) for seed in range(3))
  draws = [
    mix([a, b], (0.5, 0.25), base, 'dare_linear', density=0.5, seed=seed) for seed in range(400)
  ]
  spread = np.abs(a - base).max() / 20  # Of a mean of 400 draws.
  exact = mix([a, b], (0.5, 0.25), base)
  np.testing.assert_allclose(np.mean(draws, axis=0), exact, atol=5 * spread)
  assert abs(np.mean(np.subtract(draws, exact))) < spread / 4


def test_what_dare_keeps_does_not_depend_on_the_cut():
  whole = dare.kept(3, 0, 5000, 0.3)
  cut = np.concatenate([dare.kept(3, start, 1000, 0.3) for start in range(0, 5000, 1000)])
  odd = np.concatenate([dare.kept(3, 0, 1237, 0.3), dare.kept(3, 1237, 3763, 0.3)])
  np.testing.assert_array_equal(whole, cut)
  np.testing.assert_array_equal(whole, odd)
  assert abs(whole.mean() - 0.3) < 0.03
  assert dare.kept(3, 0, 9, 1.0).all()


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('size', [1, 5, 4000])
def test_magnitudes_of_a_rank_are_exact(size, dtype, monkeypatch):
  monkeypatch.setattr(order, '_PIECE', 700)
  base, *inputs = (drawn(seed, (size,), dtype) for seed in range(4))
  inputs[2][::3] = base[::3]  # Many zeros.

  def parts():
    for start in range(0, size, 1500):
      cut = slice(start, start + 1500)
      yield Part([leaf[cut] for leaf in inputs], base[cut], start)

  ranks = [0, size // 3, size - 1]
  found = order.magnitudes(Tensor('w', size, range(3), (1, 1, 1), parts), ranks)
  wide = base.astype(np.float32)
  expected = [np.sort(np.abs(leaf.astype(np.float32) - wide))[ranks] for leaf in inputs]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', ['matrix', 'vector'])
@pytest.mark.parametrize(
  'case, method, options',
  [
    ('task_arithmetic', 'linear', {}),
    ('ties', 'ties', {'density': 0.2}),
    ('ties_lambda', 'ties', {'density': 0.55, 'lambda': 1.7}),
    ('breadcrumbs', 'breadcrumbs', {'density': 0.7, 'gamma': 0.1}),
    ('model_stock', 'model_stock', {}),
  ],
)
def test_numbers_of_mergekit(case, method, options, name):
  base, inputs = RECORDED[f'{name}/base'], RECORDED[f'{name}/inputs']
  numbers = (1, 1, 1) if method == 'model_stock' else WEIGHTS
  mixed = mix(inputs, numbers, base, method, **options)
  np.testing.assert_allclose(mixed, RECORDED[f'{name}/{case}'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['matrix', 'vector'])
def test_numbers_of_mergekit_without_a_base(name):
  inputs = RECORDED[f'{name}/inputs']
  mixed = mix(inputs, np.divide(WEIGHTS, sum(WEIGHTS)).tolist())
  np.testing.assert_allclose(mixed, RECORDED[f'{name}/linear'], rtol=1e-5)
  mixed = mix(inputs[:2], (0.3, 0.7), method='slerp')
  np.testing.assert_allclose(mixed, RECORDED[f'{name}/slerp'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['matrix', 'vector'])
@pytest.mark.parametrize('method, elects', [('dare_linear', False), ('dare_ties', True)])
def test_numbers_of_mergekit_with_its_masks(method, elects, name):
  base, inputs = RECORDED[f'{name}/base'], RECORDED[f'{name}/inputs']
  masks, numbers = list(RECORDED[f'{name}/masks']), jnp.float32(WEIGHTS)
  mixed = dare.mix_kept(list(inputs), base, masks, numbers, 0.4, 1.0, elects, base.dtype)
  np.testing.assert_allclose(mixed, RECORDED[f'{name}/{method}'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'method, options',
  [
    ('linear', {}),
    ('ties', {'density': 1.0}),
    ('dare_linear', {'density': 1.0}),
    ('dare_ties', {'density': 1.0}),
    ('breadcrumbs', {'density': 1.0, 'gamma': 0.0}),
    ('model_stock', {}),
  ],
)
def test_equal_inputs_are_mixed_to_that_input_if_nothing_is_dropped(method, options):
  base, a = drawn(0), drawn(1)
  mixed = mix(
    [a, a, a],
    (0.25, 0.25, 0.25) if method == 'model_stock' else (0.2, 0.3, 0.5),
    base,
    method,
    **options,
  )
  np.testing.assert_allclose(mixed, a, rtol=1e-5, atol=1e-6)
  # An input that is not used changes nothing.
  np.testing.assert_allclose(
    mix([a, drawn(2)], (1, 0), base, method, **options), a, rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize('method', BASED)
def test_inputs_that_are_the_base_change_nothing(method):
  base = drawn(0, dtype=ml_dtypes.bfloat16)
  np.testing.assert_array_equal(mix([base, base], (1, 1), base, method), base)


@pytest.mark.parametrize('method', ['slerp', *BASED])
def test_every_layer_and_expert_of_a_stack_is_mixed_alone(method):
  """As one tensor, its largest differences would all be in the last layer."""
  scale = np.float32([1, 10, 100]).reshape(3, 1, 1, 1)
  values = [scale * drawn(seed, (3, 2, 4, 5)) for seed in range(3)]
  base = None if method == 'slerp' else values[2]
  numbers = (0.5, 0.5)
  whole = mix(values[:2], numbers, base, method, stacked=2)
  for at in np.ndindex(3, 2):
    if method.startswith('dare'):  # Every tensor has random numbers of its own.
      assert (whole[at] == values[2][at]).any() and (whole[at] != values[2][at]).any()
      continue
    alone = mix(
      [value[at] for value in values[:2]], numbers, base if base is None else base[at], method
    )
    np.testing.assert_array_equal(whole[at], alone)


def test_a_rule_gives_an_expert_its_own_coefficients():
  a, b = ({'w': jnp.asarray(drawn(seed, (3, 4, 2)))} for seed in (0, 1))
  rules = [('w/2', (1, 0)), ('.*', (0, 1))]
  mixed = np.asarray(weights.mix([a, b], rules, stacked={'w': 2})['w'])
  np.testing.assert_array_equal(mixed[:, 2], a['w'][:, 2])
  np.testing.assert_array_equal(mixed[:, [0, 1, 3]], b['w'][:, np.array([0, 1, 3])])


def test_model_stock_and_slerp_work_inside_jit():
  base, a, b = ({'w': jnp.asarray(drawn(seed))} for seed in range(3))

  def both(a, b, base):
    stock = weights.mix([a, b], (1, 1), base=base, method='model_stock')
    return stock, weights.mix([a, b], (0.5, 0.5), method='slerp')

  for traced, eager in zip(jax.jit(both)(a, b, base), both(a, b, base)):
    np.testing.assert_allclose(traced['w'], eager['w'], rtol=1e-5, atol=1e-6)


def test_a_method_gets_statistics_beside_each_input(monkeypatch):
  """The parts of Fisher statistics, and of a kernel alone the functions that read Gram matrices."""

  def mix_fisher(part, coefficients, measured, options, dtype):
    return sum(part.fishers) / len(part.fishers)

  def measure_grams(tensor, options):
    return sum(read() for read in tensor.grams) if tensor.grams else None

  def mix_grams(part, coefficients, measured, options, dtype):
    return linear.mix_leaf(part.leaves, coefficients, None, dtype) if measured is None else measured

  rows = {
    'fisher': methods.Method(mix_fisher, statistics='fisher'),
    'gram': methods.Method(mix_grams, measure_grams, statistics='gram'),
  }
  monkeypatch.setattr(methods, 'METHODS', methods.METHODS | rows)
  parents = [{'k': drawn(seed, (2, 3, 3)), 'b': drawn(seed + 5, (4,))} for seed in range(3)]
  stats = [{'k': drawn(seed + 10, (2, 3, 3)), 'b': drawn(seed + 15, (4,))} for seed in range(3)]
  numbers = (0.5, 0.5, 0)
  mixed = weights.mix(parents, numbers, method='fisher', statistics=stats)
  for path in ('k', 'b'):
    np.testing.assert_allclose(mixed[path], (stats[0][path] + stats[1][path]) / 2, rtol=1e-6)
  grams = [{'k': tree['k']} for tree in stats]
  mixed = weights.mix(parents, numbers, method='gram', statistics=grams, stacked={'k': 1})
  np.testing.assert_allclose(mixed['k'], stats[0]['k'] + stats[1]['k'], rtol=1e-6)
  np.testing.assert_allclose(mixed['b'], (parents[0]['b'] + parents[1]['b']) / 2, rtol=1e-6)


BASE = {'w': np.zeros((2, 2), np.float32)}


@pytest.mark.parametrize(
  'given, words',
  [
    ({'method': 'cubic'}, "'cubic', expected one of .*dare_linear.*ties"),
    ({'method': 'ties'}, 'no base, expected the model that the inputs started from'),
    ({'method': 'slerp', 'base': BASE}, 'a base, expected none'),
    ({'method': 'slerp', 'count': 3}, '3 inputs, expected 2'),
    ({'method': 'model_stock', 'base': BASE, 'count': 1}, '1 inputs, expected at least 2'),
    ({'method': 'model_stock', 'base': BASE, 'numbers': (0.5, 0.7)}, 'the same number'),
    ({'options': {'density': 0.5}}, '0.5 with --method=linear.*ties, dare_linear'),
    ({'method': 'ties', 'base': BASE, 'options': {'seed': 1}}, '--seed: got 1 with --method=ties'),
    ({'method': 'ties', 'base': BASE, 'options': {'density': 0}}, 'density: got 0, .*above 0'),
    ({'method': 'ties', 'base': BASE, 'options': {'density': 1.5}}, 'at most 1'),
    ({'method': 'breadcrumbs', 'base': BASE, 'options': {'gamma': 0.2}}, 'density of 0.9.*gamma'),
    ({'method': 'dare_ties', 'base': BASE, 'options': {'seed': -1}}, 'seed: got -1'),
    ({'method': 'ties', 'base': BASE, 'options': {'lambda': np.inf}}, 'lambda: got inf'),
    ({'statistics': [BASE, BASE]}, 'statistics, expected none'),
    ({'method': 'slerp', 'unnormalized': True}, '--unnormalized: got --method=slerp'),
    ({'method': 'slerp', 'numbers': (0.5, 0.7)}, 'a sum of 1; correct them$'),
  ],
)
def test_what_a_method_cannot_use_is_refused(given, words):
  count = given.pop('count', 2)
  numbers = given.pop('numbers', (1 / count,) * count)
  with pytest.raises(errors.SphinxError, match=words):
    weights.mix([BASE] * count, numbers, **given)
