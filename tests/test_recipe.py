"""Steps of a recipe run in order. A finished step never runs again, an interrupted one does."""

import json

import pytest
from ml_collections import ConfigDict

from sphinx_jax import recipe, run
from sphinx_jax.configs import mini
from sphinx_jax.core import errors


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


def test_an_interrupted_recipe_goes_on_at_its_step(ran, tmp_path):
  config = _config(first='train', broken='train', last='train')
  with pytest.raises(KeyboardInterrupt):
    recipe.run_recipe(config, tmp_path)
  recipe.run_recipe(config, tmp_path)
  recipe.run_recipe(config, tmp_path)
  assert ran == ['first', 'broken', 'broken', 'last']
  assert json.loads((tmp_path / 'last' / 'done.json').read_text())['peak_rss_bytes'] > 0


def test_a_wrong_list_of_steps_is_refused_before_the_first_runs(ran, tmp_path):
  with pytest.raises(
    errors.SphinxError, match="got 'lst', expected one of first, last; did you mean 'last'"
  ):
    recipe.run_recipe(
      ConfigDict(
        {'steps': ('first', 'lst'), 'first': {'kind': 'train'}, 'last': {'kind': 'train'}}
      ),
      tmp_path,
    )
  with pytest.raises(errors.SphinxError, match="did you mean 'train'"):
    recipe.run_recipe(_config(first='trian'), tmp_path / 'other')
  assert not ran


def test_a_stage_finds_what_earlier_steps_left(tmp_path):
  stage = run.training_run(mini.get_config(), 'stage2', tmp_path)
  assert stage.init_from == str(tmp_path / 'mix') and stage.data_dir == str(tmp_path / 'data')
  assert run.training_run(mini.get_config(), 'real', tmp_path).init_from is None


def test_stages_share_the_model_and_freeze_the_encoders_after_the_first():
  for arg in ('', 'quick'):
    config = mini.get_config(arg)
    assert config.real.model == config.synthetic.model == config.stage2.model
    assert config.real.trainable == (('.*', 'train'),)
    assert config.synthetic.trainable[0] == config.stage2.trainable[0] == ('encoders/.*', 'frozen')
