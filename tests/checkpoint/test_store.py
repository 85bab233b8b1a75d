import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sphinx_jax.checkpoint import fingerprint, store
from sphinx_jax.core import errors


def layouts(ways: int) -> NamedSharding:
  mesh = jax.make_mesh((ways,), ('x',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:ways])
  return NamedSharding(mesh, PartitionSpec('x'))


def params(ways: int = 8, shift: float = 0.0) -> dict:
  w = jnp.arange(64.0).reshape(8, 8) + shift
  return {'llm': {'w': jax.device_put(w, layouts(ways))}, 'encoders': {'b': jax.device_put(jnp.ones(8, jnp.bfloat16), layouts(ways))}}


def abstract(tree, ways: int):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layouts(ways)), tree)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run with three saves from 8 devices, of which two are kept."""
  directory = tmp_path_factory.mktemp('run')
  with store.Store(directory, keep=2) as run:
    for step in (1, 2, 3):
      tree = params(shift=step)
      run.save(step, tree, optax.adam(1.0).init({'llm': tree['llm']})[0], {'config': '{"a": 1}', 'data_position': 10 * step})
  return directory


def test_newest_are_kept_with_their_meta(saved):
  assert sorted(path.name for path in (saved / 'checkpoints').iterdir()) == ['2', '3']
  assert store.latest(saved) == 3
  meta = store.load_meta(saved)
  assert meta.pop('fingerprints').keys() == {'params/llm/w', 'params/encoders/b', 'opt_state/count', 'opt_state/mu/llm/w', 'opt_state/nu/llm/w'}
  assert meta == {'layout': store.LAYOUT, 'step': 3, 'config': '{"a": 1}', 'data_position': 30}
  assert store.load_meta(saved / 'checkpoints' / '2')['step'] == 2


@pytest.mark.parametrize('ways', [8, 4, 1])
def test_saved_on_eight_restored_on_fewer(saved, ways):
  tree = params(ways, shift=3)
  opt_state = optax.adam(1.0).init({'llm': tree['llm']})[0]
  small = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=(
      layouts(ways) if leaf.ndim else NamedSharding(layouts(ways).mesh, PartitionSpec()))), opt_state)
  with store.Store(saved, keep=2) as run:
    got, moments, meta = run.restore(run.latest(), abstract(tree, ways), small)
  jax.tree.map(np.testing.assert_array_equal, (got, moments), (tree, opt_state))
  assert got['llm']['w'].sharding.is_equivalent_to(layouts(ways), 2) and meta['data_position'] == 30


def test_params_alone_need_no_mesh(saved):
  got = store.load_params(saved)
  jax.tree.map(np.testing.assert_array_equal, got, params(shift=3))
  assert got['encoders']['b'].dtype == jnp.bfloat16 and len(got['llm']['w'].devices()) == 1


def test_precision_is_that_asked_for(saved):
  want = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=layouts(1)), params())
  got = store.load_params(saved, want)
  assert got['encoders']['b'].dtype == jnp.float32 and np.all(got['encoders']['b'] == 1)


def test_every_difference_is_named(saved):
  want = abstract(params(), 1)
  want['llm']['w'] = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=layouts(1))
  want['visual_proj'] = want.pop('encoders')
  with pytest.raises(errors.SphinxError) as caught:
    store.load_params(saved, want)
  for words in ('3 differences', 'llm/w: shape (8, 8), expected (8, 4)', 'missing visual_proj/b', 'extra encoders/b'):
    assert words in str(caught.value)


def test_integers_are_not_taken_for_floats(saved):
  want = abstract(params(), 1)
  want['llm']['w'] = jax.ShapeDtypeStruct((8, 8), jnp.int32, sharding=layouts(1))
  with pytest.raises(errors.SphinxError, match='llm/w: dtype float32, expected int32'):
    store.check(saved, want)


def test_what_is_not_a_checkpoint_is_refused(saved, tmp_path):
  (tmp_path / 'notes.txt').write_text('x')
  (tmp_path / 'half' / 'params').mkdir(parents=True)
  for place, words in ((tmp_path, 'notes.txt'), (tmp_path / 'absent', 'nothing there'), (tmp_path / 'half', 'without readable meta')):
    with pytest.raises(errors.SphinxError, match=words):
      store.load_params(place)
  assert store.latest(tmp_path) is None


def test_another_layout_version_is_refused(saved, tmp_path):
  copy = shutil.copytree(saved / 'checkpoints' / '3', tmp_path / '3')
  file = copy / 'meta' / 'metadata'
  meta = {name: value for name, value in json.loads(file.read_text()).items() if name != fingerprint.SEAL}
  file.write_text(json.dumps(fingerprint.seal(meta | {'layout': 99})))
  with pytest.raises(errors.SphinxError, match='layout version 99, expected 1'):
    store.load_params(copy)


def test_damaged_params_are_refused(saved, tmp_path):
  copy = shutil.copytree(saved / 'checkpoints' / '3', tmp_path / '3')
  (copy / 'params' / '_METADATA').unlink()
  with pytest.raises(errors.SphinxError, match='without readable params'):
    store.load_params(copy)


def test_donated_arrays_are_saved_as_they_were(tmp_path):
  add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
  tree = {f'w{i}': jnp.zeros((1000, 1000)) for i in range(10)}
  with store.Store(tmp_path, keep=9) as run:
    for step in range(3):
      run.save(step, tree, None, {})
      tree = add(add(tree))  # While the save is under way.
  for step in range(3):
    assert {float(leaf[-1, -1]) for leaf in store.load_params(tmp_path / 'checkpoints' / str(step)).values()} == {2.0 * step}


KILLED = '''
import os, sys
import jax.numpy as jnp
from sphinx_jax.checkpoint import store
tree = {f'w{i}': jnp.full((1500, 1500), float(sys.argv[2])) for i in range(20)}
run = store.Store(sys.argv[1])
run.save(1, tree, None, {})
run.wait()
run.save(2, tree, None, {})
while len(os.listdir(sys.argv[1] + '/checkpoints')) < 2:
  pass
os.kill(os.getpid(), 9)
'''


def test_killed_while_saving_leaves_the_save_before(tmp_path):
  done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path), '5'], cwd=os.getcwd(), stderr=subprocess.DEVNULL,
                        env=os.environ | {'PYTHONPATH': os.getcwd()})
  assert done.returncode == -9
  assert store.latest(tmp_path) == 1 and store.load_meta(tmp_path)['step'] == 1
  with store.Store(tmp_path) as run:
    assert run.latest() == 1
    run.save(2, {'w': jnp.ones(3)}, None, {})
  assert store.latest(tmp_path) == 2 and store.load_params(tmp_path)['w'].shape == (3,)
