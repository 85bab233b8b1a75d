import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import weights


def tree(seed: int, dtype=np.float32) -> dict:
  rng = np.random.default_rng(seed)
  return {
    'llm': {
      'w': jnp.asarray(rng.normal(size=(3, 4)), dtype),
      'b': jnp.asarray(rng.normal(size=4), dtype),
    },
    'encoders': {'w': jnp.asarray(rng.normal(size=(2, 2)), dtype)},
  }


def same(a, b) -> bool:
  return jax.tree.all(
    jax.tree.map(
      lambda x, y: x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b
    )
  )


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
  jax.tree.map(
    lambda x, y, m: np.testing.assert_allclose(m, 0.25 * x + 0.75 * y, rtol=1e-6), a, b, mixed
  )
  # A mix of a mix: the coefficients multiply out.
  twice = weights.mix([mixed, a], (0.5, 0.5))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
    twice,
    weights.mix([a, b], (0.625, 0.375)),
  )


def test_sums_in_float32_and_returns_the_first_dtype():
  # In bfloat16 the ones would be lost one by one beside 256.
  big, one = ({'w': jnp.full((2,), value, jnp.bfloat16)} for value in (256, 1))
  mixed = weights.mix([big, one, one, one, one], (1, 1, 1, 1, 1), unnormalized=True)
  assert mixed['w'].dtype == jnp.bfloat16 and float(mixed['w'][0]) == 260


def test_rules_choose_by_the_first_matching_pattern():
  a, b = tree(0), tree(1)
  mixed = weights.mix([a, b], [('encoders/.*', (1, 0)), ('.*', (0, 1))])
  assert same(mixed['encoders'], a['encoders']) and same(mixed['llm'], b['llm'])


def test_task_arithmetic_adds_deltas_to_the_base():
  base, a, b = tree(0), tree(1), tree(2)
  mixed = weights.mix([a, b], (0.6, 0.9), base=base)  # They need not sum to 1.
  jax.tree.map(
    lambda m, s, x, y: np.testing.assert_allclose(
      m, s + 0.6 * (x - s) + 0.9 * (y - s), rtol=1e-5, atol=1e-6
    ),
    mixed,
    base,
    a,
    b,
  )
  assert same(weights.mix([a, b], (0, 0), base=base), base) and same(
    weights.mix([a, b], (0, 1), base=base), b
  )


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
  """The definition in float64: `share` of the angle, with lengths mixed as mergekit does."""
  a, b = (np.asarray(leaf, np.float64).ravel() for leaf in (first, second))
  angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
  return ((np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)).reshape(
    first.shape
  )


@pytest.mark.parametrize('share', [0.25, 0.5])
def test_slerp_turns_each_leaf_from_the_first_to_the_second(share):
  a, b = tree(0), tree(1)
  mixed = weights.mix([a, b], (1 - share, share), method='slerp')
  jax.tree.map(
    lambda m, x, y: np.testing.assert_allclose(m, slerp(x, y, share), rtol=1e-5, atol=1e-6),
    mixed,
    a,
    b,
  )


def test_slerp_of_parallel_leaves_is_the_straight_line():
  a = {'w': jnp.arange(1.0, 5.0)}
  mixed = weights.mix([a, {'w': 3 * a['w']}], (0.25, 0.75), method='slerp')
  np.testing.assert_allclose(mixed['w'], 2.5 * a['w'], rtol=1e-6)


def test_a_dtype_is_that_of_floating_leaves_only():
  a, b = ({**tree(seed), 'count': jnp.arange(3)} for seed in (0, 1))
  mixed = weights.mix([a, b], (1, 0), dtype='bfloat16')
  assert mixed['llm']['w'].dtype == jnp.bfloat16 and same(mixed['count'], a['count'])


@pytest.mark.parametrize(
  'options', [{}, {'method': 'slerp'}, {'base': True}, {'dtype': 'bfloat16'}]
)
def test_on_a_mesh_the_mix_is_the_same_and_no_leaf_is_gathered(options):
  """Under jit on 8 devices outputs have the sharding of the inputs and the bits of one device."""
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  shardings = {'stack': (None, 'fsdp', None), 'table': (('data', 'fsdp'),), 'vector': ()}
  shardings = {
    name: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for name, axes in shardings.items()
  }
  shapes = {'stack': (3, 16, 40), 'table': (64, 24), 'vector': (7,)}
  rng = np.random.default_rng(0)
  whole = [
    {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for _ in range(3)
  ]
  split = [
    {name: jax.device_put(leaf, shardings[name]) for name, leaf in tree.items()} for tree in whole
  ]

  def mix(a, b, base):
    used_base = {'base': base} if 'base' in options else {}
    return weights.mix([a, b], (0.3, 0.7), **options | used_base)

  compiled = jax.jit(mix).lower(*split).compile()
  mixed = compiled(*split)
  assert all(
    mixed[name].sharding.is_equivalent_to(shardings[name], mixed[name].ndim) for name in shapes
  )
  assert 'all-gather' not in compiled.as_text() and 'all-to-all' not in compiled.as_text()
  if 'method' in options:  # Sums over a leaf are rounded in another order on a mesh.
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), mixed, mix(*whole)
    )
  else:
    assert same(mixed, mix(*whole))


@pytest.mark.parametrize(
  'coefficients, words',
  [
    ((0.5, 0.6), 'sum 1.1'),
    ((1.0,), '1 coefficients'),
    ((float('inf'), 0.5), 'finite'),
    ([('llm/.*', (0.5, 0.5))], 'encoders/w'),
    ((float('nan'), 0.5), 'sum'),
    (
      [('llm/layer/.*', (1, 0)), ('.*', (0, 1))],
      "'llm/layer/.*': got a rule that matches no parameter",
    ),
    ([('llm', (1, 0)), ('.*', (0, 1))], 'a pattern of whole paths such as llm/w'),
    ([('', (1, 0)), ('.*', (0, 1))], 'a rule that matches no parameter'),
    ([('llm/(w', (1, 0)), ('.*', (0, 1))], 'no regular expression .*position'),
    ([('*', (1, 0)), ('.*', (0, 1))], 'no regular expression'),
  ],
)
def test_wrong_coefficients_are_refused(coefficients, words):
  with pytest.raises(errors.SphinxError, match=words):
    weights.mix([tree(0), tree(1)], coefficients)


def test_differing_parents_are_refused_by_leaf():
  other = tree(1)
  other['llm']['w'] = other['llm']['w'][:2]
  del other['encoders']
  with pytest.raises(
    errors.SphinxError, match=r'missing encoders/w; llm/w: shape \(2, 4\), expected \(3, 4\)'
  ):
    weights.mix([tree(0), other], (0.5, 0.5))


def test_dtypes_of_parents_may_differ():
  mixed = weights.mix([tree(0), tree(1, jnp.bfloat16)], (0.5, 0.5))
  assert mixed['llm']['w'].dtype == jnp.float32
