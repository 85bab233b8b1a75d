"""Runs that train adapters beside frozen weights, at a tiny width with batches made in memory."""

import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from sphinx_jax import few_bits, run, settings, train
from sphinx_jax.checkpoint import adapter_runs, mixing, store
from sphinx_jax.configs import mini, mini_lora
from sphinx_jax.core import errors, trees
from sphinx_jax.mix import methods
from sphinx_jax.models import adapters
from sphinx_jax.training import layout, state as states
from tests import xla
from tests.tiny import crash, in_memory, interrupt_at, lines, tiny

LORA = dict(
  rank=2,
  alpha=4.0,
  target='llm/.*',  # The LM head, too, whose product the loss computes.
  ranks=(('.*/w[12]', 4),),
  rslora=False,
  dropout=0.1,
  neftune=1.0,
  b_rate=4.0,
)


def lora(base: pathlib.Path, form: str = 'nf4', **changes):
  """The config of a run with adapters, and a fully trained projection beside them."""
  config = tiny(**changes).unlock()
  config.update(
    lora=LORA,
    frozen_dtype=form,
    trainable=(('.*/lora_[ab]', 'train'), ('visual_proj/.*', 'train'), ('.*', 'frozen')),
    init_from=str(base),
  )
  return config.lock()


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
  """A base and a run with adapters on it."""
  base, adapter = (tmp_path_factory.mktemp('runs') / name for name in ('base', 'adapter'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'open_data', in_memory())
    train.train(tiny(steps=2, eval_every=0), base)
    train.train(lora(base), adapter)
  return base, adapter


def test_a_run_holds_what_it_trains_and_learns(runs):
  base, adapter = runs
  saved = trees.flatten(store.load_params(adapter))
  assert {path.rpartition('/')[2] for path in saved} == {
    *(*adapters.LEAVES, 'kernel', 'bias', 'scale'),
  }
  assert {path for path in saved if not adapters.is_adapter(path)} == {
    path for path in trees.flatten(store.load_params(base)) if path.startswith('visual_proj/')
  }
  assert saved['llm/layers/attention/wq/lora_a'].shape == (2, 16, 2)
  assert saved['llm/layers/feed_forward/w1/lora_b'].shape[1] == 4  # The rank of a pattern.
  np.testing.assert_array_equal(saved['llm/layers/attention/wq/lora_scale'], [2.0, 2.0])
  assert all(np.any(leaf) for path, leaf in saved.items() if path.endswith(adapters.B))
  losses = [line['loss'] for line in lines(adapter) if 'loss' in line]
  assert losses[-1] < losses[0]


def test_frozen_matrices_have_neither_gradient_nor_moments(runs):
  program = run.Program(lora(runs[0]))
  trained = set(trees.flatten(program.state.trained))
  moments = [
    path
    for path, _ in jax.tree_util.tree_leaves_with_path(program.state.opt_state)
    if len(path) > 3
  ]
  assert len(moments) == 2 * len(trained)
  frozen = trees.flatten(program.state.frozen)
  codes = [leaf for path, leaf in frozen.items() if path.endswith('/nf4')]
  assert codes and all(leaf.dtype == np.uint8 for leaf in codes)
  assert not any(path.endswith('layers/attention/wq/kernel') for path in {*frozen, *trained})


def test_a_broken_run_resumes_bit_for_bit(runs, tmp_path, monkeypatch):
  base, adapter = runs
  monkeypatch.setattr(run, 'open_data', interrupt_at(4, crash))
  with pytest.raises(RuntimeError, match='as if killed'):
    train.train(lora(base), tmp_path)
  monkeypatch.setattr(run, 'open_data', in_memory())
  train.train(lora(base), tmp_path)
  assert lines(tmp_path) == lines(adapter)
  jax.tree.map(
    np.testing.assert_array_equal, store.load_params(tmp_path), store.load_params(adapter)
  )


def test_a_base_in_few_bits_is_trained_on_as_it_is_and_resumed(runs, tmp_path, monkeypatch):
  """The same numbers as of a full base, which the run quantizes while it reads it."""
  base, adapter = runs
  held, place = tmp_path / 'held', tmp_path / 'run'
  few_bits.quantize(few_bits.open_full(str(base)), held, 'nf4')
  assert 'llm/layers/attention/wq/nf4' in trees.flatten(store.load_params(held))
  monkeypatch.setattr(run, 'open_data', interrupt_at(4, crash))
  with pytest.raises(RuntimeError, match='as if killed'):
    train.train(lora(held), place)
  monkeypatch.setattr(run, 'open_data', in_memory())
  train.train(lora(held), place)
  assert [line['loss'] for line in lines(place) if 'loss' in line] == pytest.approx(
    [line['loss'] for line in lines(adapter) if 'loss' in line], rel=0.02
  )
  whole = tmp_path / 'whole'
  train.train(lora(held), whole)
  assert lines(place) == lines(whole)

  for form, words in (
    ('int8', "kernels in nf4, expected those of frozen_dtype 'int8'"),
    ('', "''"),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      train.train(lora(held, form), tmp_path / f'other{form}')


# The other codes differ in their values alone; tests/test_run.py splits plain matrices.
_SLOW = [pytest.param(form, marks=pytest.mark.slow) for form in ('', 'int8', 'int4')]


@pytest.mark.parametrize('form', ['nf4', *_SLOW])
def test_eight_devices_give_the_losses_of_one(runs, tmp_path, monkeypatch, form):
  def losses(workdir: str, **mesh):
    quiet = {'steps': 2, 'eval_every': 0, 'log_every': 1}
    config = lora(runs[0], form, **quiet, **mesh).unlock()
    config.lora.update(dropout=0.0, neftune=0.0)
    opened = in_memory()
    monkeypatch.setattr(run, 'open_data', lambda *given: opened(*given)._replace(validation=dict))
    train.train(config.lock(), tmp_path / workdir)
    return lines(tmp_path / workdir)

  one = losses('one')
  eight = losses('eight', **{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
  assert len(one) == 2
  for line, expected in zip(eight, one):
    assert line == pytest.approx(expected, rel=2e-4)


def test_weights_that_changed_since_the_run_began_are_refused(runs, tmp_path):
  other = tmp_path / 'other'
  train.train(tiny(steps=2, eval_every=0, seed=1), other)
  meta = store.load_meta(runs[1])
  adapter_runs.check_base(meta, runs[1], runs[0])
  with pytest.raises(errors.SphinxError, match=f"got other weights.*those of '{runs[0]}'"):
    adapter_runs.check_base(meta, runs[1], other)
  with pytest.raises(errors.SphinxError, match='a run that holds adapters alone.*merge it first'):
    train.train(tiny(init_from=str(runs[1])), tmp_path / 'full')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'init_from': ''}, 'lora: got a run from fresh weights'),
    ({'lora.target': 'decoder/.*'}, 'lora.target'),
    ({'frozen_dtype': 'int3'}, 'frozen_dtype'),
  ],
)
def test_settings_that_cannot_be_are_refused(runs, tmp_path, changes, words):
  config = lora(runs[0]).unlock()
  config.update_from_flattened_dict(changes)
  with pytest.raises(errors.SphinxError, match=words):
    train.train(config.lock(), tmp_path)


def test_frozen_matrices_without_adapters_are_refused(tmp_path):
  config = tiny().unlock()
  config.frozen_dtype = 'nf4'
  with pytest.raises(errors.SphinxError, match="frozen_dtype: got 'nf4' without adapters"):
    train.train(config.lock(), tmp_path)


def test_a_merged_checkpoint_has_the_sum_of_base_and_adapter(runs, tmp_path):
  base, adapter = runs
  mixing.mix_checkpoints([f'{base}+{adapter}'], (1.0,), tmp_path / 'merged')
  merged, trained, plain = (
    trees.flatten(store.load_params(place)) for place in (tmp_path / 'merged', adapter, base)
  )
  assert set(merged) == set(plain)
  for path, leaf in merged.items():
    layer = path.rpartition('/')[0]
    expected = trained.get(path, plain[path])
    if f'{layer}/lora_a' in trained and path.endswith('kernel'):
      a, b, scale = (trained[f'{layer}/{name}'] for name in adapters.LEAVES)
      expected = plain[path] + scale[..., None, None] * np.einsum('...ir,...ro->...io', a, b)
      assert np.abs(expected - plain[path]).max() > 1e-4
    np.testing.assert_allclose(leaf, expected, atol=1e-6, err_msg=path)
  meta = store.load_meta(tmp_path / 'merged')
  assert meta['parents'][0]['adapter'] == str(adapter)
  assert not adapter_runs.is_adapter(tmp_path / 'merged')


@pytest.mark.parametrize(
  'method, coefficients, options',
  [
    ('linear', (0.3, 0.7), {}),
    ('ties', (0.3, 0.7), {'density': 1}),
    ('model_stock', (1, 1), {}),
  ],
)
def test_an_adapter_mixed_with_itself_is_itself(runs, tmp_path, method, coefficients, options):
  place = '+'.join(map(str, runs))
  mixing.mix_checkpoints([place], (1.0,), tmp_path / 'one')
  base = None if methods.METHODS[method].base == 'none' else runs[0]
  mixing.mix_checkpoints(
    [place, place], coefficients, tmp_path / 'two', base=base, method=method, options=options
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    *(store.load_params(tmp_path / name) for name in ('one', 'two')),
  )


def test_an_adapter_of_other_weights_is_not_merged(runs, tmp_path):
  base, adapter = runs
  other = tmp_path / 'other'
  train.train(tiny(steps=2, eval_every=0, seed=2), other)
  with pytest.raises(errors.SphinxError, match='got other weights'):
    mixing.mix_checkpoints([f'{other}+{adapter}'], (1.0,), tmp_path / 'merged')


def test_the_mini_recipe_with_adapters_trains_them_and_the_projections_alone():
  config = mini_lora.get_config('quick')
  settings.check_recipe(config)
  shapes = layout.layout(run.training_run(config, 'stage2', pathlib.Path('run'))).shapes
  trained, _ = states.split(shapes, config.stage2.trainable)
  groups = {path.split('/')[0] for path in trees.flatten(trained)}
  assert groups == {'llm', 'visual_proj', 'qformer_proj', 'start_img', 'end_img'}
  assert all(adapters.is_adapter(path) for path in trees.flatten(trained['llm']))
  others = [name for name in config.steps if name != 'stage2']
  whole = mini.get_config('quick')
  assert all(config[name].to_dict() == whole[name].to_dict() for name in others)


@pytest.mark.slow  # The tests of its parts stand in: this config, and answers with adapters.
def test_the_mini_recipe_with_adapters_runs_to_its_report(finished_recipe, tmp_path):
  for name in ('data', 'encoders', 'real', 'synthetic', 'mix'):
    shutil.copytree(finished_recipe / name, tmp_path / name)
  command = ['-m', 'sphinx_jax.recipe', '--config=mini_lora:quick', f'--workdir={tmp_path}']
  done = subprocess.run([sys.executable, *command], env=xla.environment(), capture_output=True)
  assert done.returncode == 0, done.stderr
  assert adapter_runs.is_adapter(tmp_path / 'stage2')
  assert (tmp_path / 'report.html').exists()
