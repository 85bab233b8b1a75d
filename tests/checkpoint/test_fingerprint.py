import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sphinx_jax.checkpoint import fingerprint


def tree() -> dict:
  rng = np.random.default_rng(0)
  return {
    'w': rng.normal(size=(8, 6, 4)).astype(np.float32),
    'b': jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16),
    'count': np.int32(7),
    'mask': rng.integers(0, 2, 8).astype(bool),
    'bytes': rng.integers(0, 255, (8, 2), np.uint8),
  }


@pytest.mark.parametrize('shape', [(8, 1), (2, 4), (1, 1)])
def test_any_mesh_gives_the_same(shape):
  mesh = jax.make_mesh(
    shape, ('x', 'y'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: shape[0] * shape[1]]
  )
  spread = {
    name: jax.device_put(
      leaf, NamedSharding(mesh, PartitionSpec(*['x', 'y'][: 1 if np.ndim(leaf) else 0]))
    )
    for name, leaf in tree().items()
  }
  assert fingerprint.fingerprint_tree(spread) == fingerprint.fingerprint_tree(tree())


def test_one_changed_bit_or_two_swapped_elements_are_noticed():
  before = fingerprint.fingerprint_tree(tree())
  assert before['w'].startswith('float32[8,6,4] ') and before['count'].startswith('int32[] ')
  rng = np.random.default_rng(1)
  for _ in range(20):
    changed = tree()
    bits = changed['w'].view(np.uint32).reshape(-1)
    bits[rng.integers(bits.size)] ^= np.uint32(1) << np.uint32(rng.integers(32))
    assert fingerprint.fingerprint_tree(changed)['w'] != before['w']
  swapped = tree()
  swapped['w'][[0, 1]] = swapped['w'][[1, 0]]
  assert fingerprint.fingerprint_tree(swapped)['w'] != before['w']
  assert fingerprint.shapes(tree()) == {
    name: text.rpartition(' ')[0] for name, text in before.items()
  }


def test_seal_notices_a_digit():
  sealed = fingerprint.seal({'data_position': 12, 'metrics': {'loss': 0.1}})
  assert fingerprint.is_sealed(sealed) and not fingerprint.is_sealed(sealed | {'data_position': 13})
