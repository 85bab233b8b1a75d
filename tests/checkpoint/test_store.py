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
from orbax.checkpoint._src.path import gcs_utils

from sphinx_jax.checkpoint import fingerprint, store
from sphinx_jax.core import errors
from tests.checkpoint import bucket


def split(ways: int) -> NamedSharding:
  mesh = jax.make_mesh(
    (ways,), ('x',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:ways]
  )
  return NamedSharding(mesh, PartitionSpec('x'))


def params(ways: int = 8, shift: float = 0.0) -> dict:
  w = jnp.arange(64.0).reshape(8, 8) + shift
  return {
    'llm': {'w': jax.device_put(w, split(ways))},
    'encoders': {'b': jax.device_put(jnp.ones(8, jnp.bfloat16), split(ways))},
  }


def abstract(tree, ways: int):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split(ways)), tree
  )


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run with three saves from 8 devices, of which two are kept."""
  directory = tmp_path_factory.mktemp('run')
  with store.Store(directory, keep=2) as run:
    for step in (1, 2, 3):
      tree = params(shift=step)
      run.save(
        step,
        tree,
        optax.adam(1.0).init({'llm': tree['llm']})[0],
        {'config': '{"a": 1}', 'data_position': 10 * step},
      )
  return directory


def test_newest_are_kept_with_their_meta(saved):
  assert sorted(path.name for path in (saved / 'checkpoints').iterdir()) == ['2', '3']
  assert store.latest(saved) == 3
  meta = store.load_meta(saved)
  assert meta.pop('fingerprints').keys() == {
    'params/llm/w',
    'params/encoders/b',
    'opt_state/count',
    'opt_state/mu/llm/w',
    'opt_state/nu/llm/w',
  }
  assert meta == {
    'layout': store.FORMAT_VERSION,
    'step': 3,
    'config': '{"a": 1}',
    'data_position': 30,
  }
  assert store.load_meta(saved / 'checkpoints' / '2')['step'] == 2


@pytest.mark.parametrize('ways', [8, 4, 1])
def test_saved_on_eight_restored_on_fewer(saved, ways):
  tree = params(ways, shift=3)
  opt_state = optax.adam(1.0).init({'llm': tree['llm']})[0]
  small = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=(split(ways) if leaf.ndim else NamedSharding(split(ways).mesh, PartitionSpec())),
    ),
    opt_state,
  )
  with store.Store(saved, keep=2) as run:
    got, moments, meta = run.restore(run.latest(), abstract(tree, ways), small)
  jax.tree.map(np.testing.assert_array_equal, (got, moments), (tree, opt_state))
  assert got['llm']['w'].sharding.is_equivalent_to(split(ways), 2) and meta['data_position'] == 30


def test_params_alone_need_no_mesh(saved):
  got = store.load_params(saved)
  jax.tree.map(np.testing.assert_array_equal, got, params(shift=3))
  assert got['encoders']['b'].dtype == jnp.bfloat16 and len(got['llm']['w'].devices()) == 1


def test_precision_is_that_asked_for(saved):
  wanted = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=split(1)), params()
  )
  got = store.load_params(saved, wanted)
  assert got['encoders']['b'].dtype == jnp.float32 and np.all(got['encoders']['b'] == 1)


def test_every_difference_is_named(saved):
  wanted = abstract(params(), 1)
  wanted['llm']['w'] = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=split(1))
  wanted['visual_proj'] = wanted.pop('encoders')
  with pytest.raises(errors.SphinxError) as caught:
    store.load_params(saved, wanted)
  for words in (
    '3 differences',
    'llm/w: shape (8, 8), expected (8, 4)',
    'missing visual_proj/b',
    'extra encoders/b',
  ):
    assert words in str(caught.value)


def test_integers_are_not_taken_for_floats(saved):
  wanted = abstract(params(), 1)
  wanted['llm']['w'] = jax.ShapeDtypeStruct((8, 8), jnp.int32, sharding=split(1))
  with pytest.raises(errors.SphinxError, match='llm/w: dtype float32, expected int32'):
    store.check(saved, wanted)


def test_what_is_not_a_checkpoint_is_refused(saved, tmp_path):
  (tmp_path / 'notes.txt').write_text('x')
  (tmp_path / 'half' / 'params').mkdir(parents=True)
  for place, words in (
    (tmp_path, 'notes.txt'),
    (tmp_path / 'absent', 'no such directory'),
    (tmp_path / 'half', 'without a readable meta'),
    ('https://huggingface.co/x/y', 'an address, expected a path'),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      store.load_params(place)
  assert store.latest(tmp_path) is None


def test_a_save_that_was_not_finished_is_refused(saved, tmp_path):
  shutil.copytree(store.locate(saved), tmp_path / '7.orbax-checkpoint-tmp')
  with pytest.raises(errors.SphinxError, match='a save that was not finished'):
    store.load_meta(tmp_path / '7.orbax-checkpoint-tmp')


def test_another_format_version_is_refused(saved, tmp_path):
  copy = shutil.copytree(saved / 'checkpoints' / '3', tmp_path / '3')
  file = copy / 'meta' / 'metadata'
  meta = {
    name: value for name, value in json.loads(file.read_text()).items() if name != fingerprint.SEAL
  }
  file.write_text(json.dumps(fingerprint.seal(meta | {'layout': 99})))
  with pytest.raises(errors.SphinxError, match='format version 99, expected 1'):
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
      tree = add(add(tree))  # While the save is running.
  for step in range(3):
    assert {
      float(leaf[-1, -1])
      for leaf in store.load_params(tmp_path / 'checkpoints' / str(step)).values()
    } == {2.0 * step}


KILLED = """
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
"""


def test_killed_while_saving_leaves_the_previous_save(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', KILLED, str(tmp_path), '5'],
    cwd=os.getcwd(),
    stderr=subprocess.DEVNULL,
    env=os.environ | {'PYTHONPATH': os.getcwd()},
  )
  assert done.returncode == -9
  assert store.latest(tmp_path) == 1 and store.load_meta(tmp_path)['step'] == 1
  with store.Store(tmp_path) as run:
    assert run.latest() == 1
    run.save(2, {'w': jnp.ones(3)}, None, {})
  assert store.latest(tmp_path) == 2 and store.load_params(tmp_path)['w'].shape == (3,)


def everything(tree: dict) -> tuple[dict, tuple]:
  """Parameters and an optimizer state for them."""
  return tree, optax.adam(1.0).init({'llm': tree['llm']})[0]


def shapes(tree):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
  )


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A run of three steps, all kept."""
  directory = tmp_path_factory.mktemp('three')
  with store.Store(directory, keep=3) as run:
    for step in (1, 2, 3):
      run.save(step, *everything(params(shift=step)), {'data_position': step})
  return directory


def newest(directory):
  with store.Store(directory, keep=3) as run:
    return run.restore_newest(*shapes(everything(params())))


def files(directory, step):
  return sorted(
    path for path in (directory / 'checkpoints' / str(step)).rglob('*') if path.is_file()
  )


def hashes(directory):
  """Name and bytes of every file."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file()
  }


@pytest.mark.parametrize('harm', ['missing', 'truncated', 'flipped'])
@pytest.mark.parametrize('part', ['params', 'opt_state', 'meta'])
def test_damaged_newest_is_gone_back_from_and_kept(
  three, tmp_path, caplog, monkeypatch, harm, part
):
  monkeypatch.setattr(store.log, 'propagate', True)
  run = shutil.copytree(three, tmp_path / 'run')
  # Files in `d` come first: Orbax does not read those beside it, which it merged into `d`.
  file = max(
    (
      path
      for path in files(run, 3)
      if path.parent.parent.name == part or path.parent.name == part or f'/{part}/' in str(path)
    ),
    key=lambda path: (path.parent == run / 'checkpoints/3' / part / 'd', path.stat().st_size),
  )
  data = bytearray(file.read_bytes())
  if harm == 'missing':
    file.unlink()
  else:
    data[len(data) // 2] ^= 1
    file.write_bytes(data if harm == 'flipped' else data[: len(data) // 2])
  harmed = {
    name.replace('checkpoints/3/', 'checkpoints/3.damaged/'): content
    for name, content in hashes(run).items()
  }
  tree, moments, meta = newest(run)
  assert meta['step'] == meta['data_position'] == 2
  jax.tree.map(np.testing.assert_array_equal, (tree, moments), everything(params(shift=2)))
  assert f"checkpoint '{run}/checkpoints/3'" in caplog.text and '3.damaged' in caplog.text
  assert hashes(run) == harmed
  # The step is saved again. A damaged checkpoint is neither counted nor deleted.
  with store.Store(run, keep=2) as again:
    again.save(3, *everything(params(shift=3)), {})
    again.save(4, *everything(params(shift=4)), {})
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['3', '3.damaged', '4']


def test_no_flipped_byte_gets_through(three, tmp_path):
  run, rng = shutil.copytree(three, tmp_path / 'run'), np.random.default_rng(0)
  noticed = 0
  for file in files(run, 3):
    whole = file.read_bytes()
    for place in rng.integers(0, len(whole), 2 if whole else 0):
      data = bytearray(whole)
      data[place] ^= 1 << rng.integers(8)
      file.write_bytes(data)
      with store.Store(run, keep=3) as one:
        try:
          tree, moments, meta = one.restore(3, *shapes(everything(params())))
        except store.Damaged:
          noticed += 1
        else:  # The byte is not read, or does not matter.
          jax.tree.map(np.testing.assert_array_equal, (tree, moments), everything(params(shift=3)))
          assert meta['data_position'] == 3
    file.write_bytes(whole)
  assert noticed > 5


def test_all_damaged_is_an_error_again_and_again(three, tmp_path):
  run = shutil.copytree(three, tmp_path / 'run')
  for step in (1, 2, 3):
    (run / 'checkpoints' / str(step) / 'meta' / 'metadata').unlink()
  before = hashes(run)
  for _ in range(2):
    with pytest.raises(
      errors.SphinxError,
      match='got 3, all of them damaged, expected .* undamaged checkpoint; nothing was deleted',
    ):
      newest(run)
  assert hashes(run) == before
  assert newest(tmp_path / 'new') is None


def test_other_leaves_are_no_damage(three):
  other = everything({'llm': params()['llm'], 'encoders': {'c': params()['encoders']['b']}})
  with (
    store.Store(three, keep=3) as run,
    pytest.raises(errors.SphinxError, match='the arrays of the config') as caught,
  ):
    run.restore_newest(*shapes(other))
  assert not isinstance(caught.value, store.Damaged) and not list(three.rglob('*damaged'))


def test_multiples_of_keep_every_are_kept_beside_the_newest(tmp_path):
  with store.Store(tmp_path, keep=2, keep_every=3) as run:
    for step in range(1, 9):
      run.save(step, {'w': jnp.ones(3)}, None, {})
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['3', '6', '7', '8']


def test_a_run_in_a_bucket_is_found_and_its_damaged_step_renamed(three, tmp_path, monkeypatch):
  # It asks Google.
  monkeypatch.setattr(gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False)
  shutil.copytree(three, tmp_path / 'bucket/run')
  folder = tmp_path / 'bucket/run/checkpoints'
  with bucket.bucket(tmp_path):
    # Orbax's mark. A bucket renames nothing, so a step without the mark is an unfinished save.
    mark = folder / '3/commit_success.txt'
    mark.rename(tmp_path / 'mark')
    assert store.latest('gs://bucket/run') == 2
    (tmp_path / 'mark').rename(mark)
    assert (
      store.latest('gs://bucket/run') == 3
      and store.load_meta('gs://bucket/run')['data_position'] == 3
    )
    assert str(store.locate('gs://bucket/run')) == 'gs://bucket/run/checkpoints/3'
    meta = folder / '3/meta/metadata'
    meta.write_text(
      meta.read_text()
      .replace('"data_position":3', '"data_position":7')
      .replace('"data_position": 3', '"data_position": 7')
    )
    changed = {path.name: path.read_bytes() for path in files(tmp_path / 'bucket/run', 3)}
    tree, moments, meta = newest('gs://bucket/run')
  assert meta['data_position'] == 2
  jax.tree.map(np.testing.assert_array_equal, (tree, moments), everything(params(shift=2)))
  assert not (folder / '3').exists()
  assert {
    path.name: path.read_bytes() for path in files(tmp_path / 'bucket/run', '3.damaged')
  } == changed


def test_a_full_disk_is_reported_and_earlier_checkpoints_are_whole(tmp_path):
  if subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', tmp_path], capture_output=True
  ).returncode:
    pytest.skip('needs to be allowed to mount a small disk, which CI was on 2026-11-23')
  try:
    # 3 MB: a third one does not fit.
    tree = {'w': jax.random.normal(jax.random.key(0), (1000, 750))}
    with pytest.raises(errors.SphinxError) as caught:
      with store.Store(tmp_path, keep=9) as run:
        for step in range(1, 5):
          scaled = jax.tree.map(lambda leaf, step=step: leaf * step, tree)
          run.save(step, scaled, None, {'data_position': step})
    assert str(tmp_path / 'checkpoints') in str(caught.value) and 'no space left' in str(
      caught.value
    )
    assert 'bytes free' in str(caught.value)
    with store.Store(tmp_path, keep=9) as run:
      found, _, meta = run.restore_newest(shapes(tree), None)
    assert meta['data_position'] == 2
    np.testing.assert_array_equal(found['w'], tree['w'] * 2)
  finally:
    subprocess.run(['umount', tmp_path])
