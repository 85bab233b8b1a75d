"""Adapters of several runs mixed into one."""

import shutil

import numpy as np
import pytest

from sphinx_jax.checkpoint import adapter_mixing, adapter_runs, content, merged, mixing, store
from sphinx_jax.core import errors, trees
from sphinx_jax.models import adapters
from tests.generate import small

WHOLE = 'llm/norm/scale'


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A base, and two runs with adapters on it. The second has other layers, and a parameter."""
  root = tmp_path_factory.mktemp('runs')
  base = small.save(root / 'base')
  one = small.save_adapter(root / 'one', base)
  other = small.save_adapter(root / 'other', base, 1, 3, 'llm/layers/attention/.*', [WHOLE])
  return base, one, other


def weights(place):
  """The weights of BASE+ADAPTER."""
  return {path: array.read(()) for path, array in merged.open_checkpoint(place).arrays.items()}


def assert_equal(found, expected, **tolerance):
  for path, value in expected.items():
    np.testing.assert_allclose(found[path], value, err_msg=path, **tolerance)


def test_an_adapter_mixed_with_itself_is_itself(folders, tmp_path):
  base, one, _ = folders
  losses = adapter_mixing.mix_adapters([one, one], (0.3, 0.7), tmp_path / 'mix', 4)
  assert adapter_runs.is_adapter(tmp_path / 'mix')
  assert {loss.rank for loss in losses.values()} == {4, None}
  assert max(loss.error for loss in losses.values()) < 1e-6
  assert_equal(weights(f'{base}+{tmp_path / "mix"}'), weights(f'{base}+{one}'), atol=1e-6)


def test_at_the_sum_of_the_ranks_it_is_the_mix_of_the_merged_weights(folders, tmp_path):
  base, one, other = folders
  adapter_mixing.mix_adapters([one, other], (0.25, 0.75), tmp_path / 'mix', 7)
  whole = [f'{base}+{one}', f'{base}+{other}']
  mixing.mix_checkpoints(whole, (0.25, 0.75), tmp_path / 'whole')
  expected = trees.flatten(store.load_params(tmp_path / 'whole'))
  assert_equal(weights(f'{base}+{tmp_path / "mix"}'), expected, atol=2e-6)
  saved = trees.flatten(store.load_params(tmp_path / 'mix'))
  layers = 'llm/layers/attention/wq', 'llm/layers/feed_forward/w1'
  assert [saved[f'{layer}/lora_a'].shape[-1] for layer in layers] == [7, 4]
  start = trees.flatten(small.params())[WHOLE]
  np.testing.assert_allclose(saved[WHOLE], start + 0.75 * 2, rtol=1e-6)


def test_a_lower_rank_loses_what_is_printed(folders, tmp_path):
  base, one, other = folders
  losses = adapter_mixing.mix_adapters([one, other], (1, 1), tmp_path / 'mix', 2, unnormalized=True)
  rough, one, other, start = (
    weights(place)
    for place in (f'{base}+{tmp_path / "mix"}', f'{base}+{one}', f'{base}+{other}', base)
  )
  error = size = 0
  for layer, loss in losses.items():
    if layer == 'total':
      assert loss.error == pytest.approx(np.sqrt(error / size), rel=1e-4)
      continue
    path = f'{layer}/{adapters.KERNEL}'
    exact = one[path] + other[path] - 2 * start[path]
    lost, of_all = ((d**2).sum() for d in (exact + start[path] - rough[path], exact))
    assert loss.error == pytest.approx(np.sqrt(lost / of_all), rel=1e-4) and loss.error > 0.1
    error, size = error + lost, size + of_all
  np.testing.assert_allclose(rough[WHOLE], start[WHOLE] + 2, rtol=1e-6)


def test_rules_give_layers_other_coefficients_and_the_same_mix_is_kept(folders, tmp_path):
  base, one, other = folders
  rules = [('llm/layers/attention/.*', (1.0, 0.0)), ('.*', (0.5, 0.5))]
  mix = lambda rules: adapter_mixing.mix_adapters([one, other], rules, tmp_path / 'mix', 4)
  losses, found = mix(rules), weights(f'{base}+{tmp_path / "mix"}')
  path = 'llm/layers/attention/wq/kernel'
  np.testing.assert_allclose(found[path], weights(f'{base}+{one}')[path], atol=1e-6)
  assert mix(rules) == losses
  meta = store.load_meta(tmp_path / 'mix')
  hashed = content.ContentHash()
  for path, value in trees.flatten(store.load_params(tmp_path / 'mix')).items():
    hashed.update(path, value, np.asarray(value))
  assert meta['hash'] == hashed.hexdigest()
  assert [parent['directory'] for parent in meta['parents']] == [str(one), str(other)]
  with pytest.raises(errors.SphinxError, match="'coefficients'. differ"):
    mix((0.5, 0.5))


def test_what_cannot_be_mixed_into_one_adapter_is_refused(folders, tmp_path):
  base, one, other = folders
  mix = lambda *inputs, **given: adapter_mixing.mix_adapters(
    inputs, given.pop('c', (0.5, 0.5)), tmp_path / 'mix', 4, **given
  )
  with pytest.raises(errors.SphinxError, match='got a checkpoint with all weights'):
    mix(one, base)
  with pytest.raises(errors.SphinxError, match='of sum 1.2, expected a sum of 1'):
    mix(one, other, c=(0.6, 0.6))
  with pytest.raises(errors.SphinxError, match='a rule that matches no parameter'):
    mix(one, other, c=[('vision/.*', (1, 0)), ('.*', (1, 0))])
  with pytest.raises(errors.SphinxError, match='a checkpoint of a training run'):
    adapter_mixing.mix_adapters([one, other], (0.5, 0.5), one, 4)
  changed = small.save(tmp_path / 'changed', seed=1)
  stranger = small.save_adapter(tmp_path / 'stranger', changed)
  with pytest.raises(errors.SphinxError, match=f"an adapter of '{changed}', expected one of"):
    mix(one, stranger)
  with pytest.raises(errors.SphinxError, match='got other weights'):
    mix(one, other, base=changed)
  assert not (tmp_path / 'mix').exists()


def test_the_base_is_read_where_it_is_if_it_is_needed(folders, tmp_path):
  base, *inputs = (shutil.copytree(folder, tmp_path / folder.name) for folder in folders)
  metas = [
    store.load_meta(folder) | {'adapter_of': {'path': '/gone', 'identity': store.identity(base)}}
    for folder in inputs
  ]
  moved = []
  for folder, meta in zip(inputs, metas):
    with store.Store(tmp_path / f'moved {folder.name}') as saver:
      saver.save(3, store.load_params(folder), None, meta)
    moved.append(tmp_path / f'moved {folder.name}')
  with pytest.raises(errors.SphinxError, match="no checkpoint in '/gone'"):
    adapter_mixing.mix_adapters(moved, (0.5, 0.5), tmp_path / 'mix', 7)
  adapter_mixing.mix_adapters(moved, (0.5, 0.5), tmp_path / 'mix', 7, base=base)
  found = trees.flatten(store.load_params(tmp_path / 'mix'))[WHOLE]
  np.testing.assert_allclose(found, trees.flatten(small.params())[WHOLE] + 1, rtol=1e-6)
  assert adapter_runs.base_of(tmp_path / 'mix') == str(base)


def test_adapters_alone_are_not_mixed_as_weights(folders, tmp_path):
  _, one, other = folders
  with pytest.raises(errors.SphinxError, match='a run that holds adapters alone'):
    mixing.mix_checkpoints([one, other], (0.5, 0.5), tmp_path / 'mix')
