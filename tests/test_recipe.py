"""Steps of a recipe run in order. A finished step never runs again, an interrupted one does."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from sphinx_jax import recipe, run, settings
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.configs import mini
from sphinx_jax.core import config as config_lib, errors, trees


def _config(**sections):
  return ConfigDict(
    {'steps': tuple(sections), **{name: {'kind': kind} for name, kind in sections.items()}}
  ).lock()


@pytest.fixture
def ran(monkeypatch):
  """Names of the steps that ran; a step called 'broken' fails the first time."""
  names = []

  def step(config, name, workdir):
    del config, workdir
    names.append(name)
    if name == 'broken' and names.count(name) == 1:
      raise KeyboardInterrupt

  monkeypatch.setattr(recipe, 'KINDS', {'train': step})
  return names


def test_an_interrupted_recipe_resumes_at_its_step(ran, tmp_path):
  config = _config(first='train', broken='train', last='train')
  with pytest.raises(KeyboardInterrupt):
    recipe.run_recipe(config, tmp_path)
  recipe.run_recipe(config, tmp_path)
  recipe.run_recipe(config, tmp_path)
  assert ran == ['first', 'broken', 'broken', 'last']
  assert json.loads((tmp_path / 'last' / 'done.json').read_text())['peak_rss_bytes'] > 0


def test_steps_made_from_files_that_are_gone_are_refused(ran, tmp_path):
  config = _config(first='train', second='train', last='train')
  recipe.run_recipe(config, tmp_path)
  shutil.rmtree(tmp_path / 'second')
  with pytest.raises(errors.SphinxError, match=r"'second' not finished but later .*\(last\)"):
    recipe.run_recipe(config, tmp_path)
  shutil.rmtree(tmp_path / 'last')
  recipe.run_recipe(config, tmp_path)
  assert ran == ['first', 'second', 'last', 'second', 'last']
  (tmp_path / 'first' / 'done.json').write_text('')
  with pytest.raises(errors.SphinxError, match='done.json.: got no readable JSON'):
    recipe.run_recipe(config, tmp_path)


def test_a_wrong_list_of_steps_is_refused_before_the_first_runs(ran, tmp_path):
  config = _config(first='train', last='train').copy_and_resolve_references()
  with config.unlocked():
    config.steps = ('first', 'lst')
  with pytest.raises(
    errors.SphinxError, match="got 'lst', expected one of first, last; did you mean 'last'"
  ):
    recipe.run_recipe(config, tmp_path)
  with pytest.raises(errors.SphinxError, match="did you mean 'train'"):
    recipe.run_recipe(_config(first='trian'), tmp_path / 'other')
  assert not ran


def test_a_stage_finds_what_earlier_steps_left(tmp_path):
  stage = run.training_run(mini.get_config(), 'stage2', tmp_path)
  assert stage.init_from == str(tmp_path / 'mix') and stage.data_dir == str(tmp_path / 'data')
  first = run.training_run(mini.get_config(), 'real', tmp_path)
  assert first.init_from == str(tmp_path / 'encoders')
  in_bucket = run.training_run(mini.get_config(), 'stage2', 'gs://bucket/run')
  assert in_bucket.tokenizer == 'gs://bucket/run/data/tokenizer.model'


def test_a_config_of_one_run_is_its_training_run(tmp_path):
  stage = run.training_run(mini.get_config(), 'real', tmp_path)
  assert run.training_run(stage, None, tmp_path / 'other') is stage
  with pytest.raises(errors.SphinxError, match='expected one of real, stage2, synthetic'):
    run.training_run(mini.get_config(), None)


def test_a_finished_recipe_is_left_as_it_is(finished_recipe, monkeypatch):
  """Every step has its time and memory, and none runs again."""
  config = config_lib.from_json((finished_recipe / 'config.json').read_text())
  files = {path: path.stat().st_mtime_ns for path in finished_recipe.rglob('*')}
  for name in config.steps:
    done = json.loads((finished_recipe / name / 'done.json').read_text())
    assert done['seconds'] > 0 and done['peak_rss_bytes'] > 2**20
  monkeypatch.setattr(recipe, 'KINDS', dict.fromkeys(recipe.KINDS))
  assert recipe.run_recipe(config, finished_recipe) == finished_recipe / 'report.html'
  assert files == {path: path.stat().st_mtime_ns for path in finished_recipe.rglob('*')}


def test_the_encoders_are_pretrained_and_stay_as_they_are(finished_recipe):
  given = trees.flatten(store.load_params(finished_recipe / 'encoders'))
  assert {path.split('/')[1] for path in given} == {'clip', 'convnext', 'dinov2', 'qformer'}
  for name in ('real', 'synthetic', 'mix', 'stage2'):
    params = trees.flatten(store.load_params(finished_recipe / name))
    kept = {path: leaf for path, leaf in params.items() if path.startswith('encoders/')}
    assert kept.keys() == given.keys()
    assert all(np.array_equal(kept[path], given[path]) for path in given), name
  assert 'The encoders were pretrained first' in (finished_recipe / 'report.html').read_text()


def test_the_mix_of_a_recipe_is_the_best_coefficient_of_its_choice(finished_recipe):
  curve = json.loads((finished_recipe / 'mix' / 'curve.json').read_text())
  choice = json.loads((finished_recipe / 'mix' / 'choice.json').read_text())
  assert [sorted(point) for point in curve] == [['coefficient', 'real', 'synthetic']] * 3
  assert choice['coefficient'] in {point['coefficient'] for point in curve}


def test_losses_of_a_mix_are_measured_batch_by_batch_on_the_order_of_their_own_seed(
  finished_recipe, tmp_path
):
  for folder in filter(pathlib.Path.is_dir, finished_recipe.iterdir()):
    (tmp_path / folder.name).symlink_to(folder)
  config = mini.get_config('quick').unlock()
  sets = {domain: mini.caption(domain, 'test') for domain in ('real', 'synthetic')}
  section = dict(kind='losses', checkpoint='mix', like='real', sets=sets, batches=2, seed=0)
  found = []
  for number, seed in enumerate((0, 7)):
    config.real.seed, name = seed, f'losses{number}'
    config[name], config.steps = ConfigDict(section), (*config.steps[:-2], name)
    settings.check_recipe(config)
    recipe.run_step(config, name, tmp_path)
    found.append(json.loads((tmp_path / name / 'losses.json').read_text()))
    config.steps = mini.STEPS
  assert found[0] == found[1] and list(found[0]) == ['real', 'synthetic']
  assert all(len(losses) == 2 and min(losses) > 0 for losses in found[0].values())
  for change, words in (
    (dict(checkpoint='evaluate'), "losses0.checkpoint: got 'evaluate', expected a training run or"),
    (dict(like='mix'), "losses0.like: got 'mix', expected a training run"),
  ):
    config.losses0 = ConfigDict(section | change)
    config.steps = (*mini.STEPS[:-1], 'losses0')
    with pytest.raises(errors.SphinxError, match=words):
      settings.check_recipe(config)


def test_the_mix_of_a_recipe_refuses_two_models_before_it_measures(tmp_path, monkeypatch):
  config = mini.get_config('quick')
  monkeypatch.setattr(run, 'open_parents', lambda *_: pytest.fail('the mix is measured'))
  for name, theta in zip(config.mix.inputs, (10000.0, 500.0)):
    stage = run.training_run(config, name, tmp_path).copy_and_resolve_references()
    with stage.unlocked():
      stage.model.llm.rope_theta = theta
    with store.Store(tmp_path / name) as saved:
      saved.save(1, {'w': np.ones(2)}, None, Bundle(stage, b'pieces', {}).to_meta())
  with pytest.raises(errors.SphinxError, match='llm.rope_theta: 10000.0 there, 500.0 here'):
    recipe.KINDS['mix'](config, 'mix', tmp_path)


def test_stages_share_the_model_and_freeze_the_encoders():
  for arg in ('', 'quick', 'siglip'):
    config = mini.get_config(arg)
    assert config.real.model == config.synthetic.model == config.stage2.model
    assert config.encoders.model.encoders == config.real.model.encoders
    for name in ('real', 'synthetic', 'stage2'):
      assert config[name].trainable[0] == ('encoders/.*', 'frozen')
