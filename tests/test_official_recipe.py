"""The laptop recipe from dataset files, with a narrow model and few updates."""

import json

import pytest

from sphinx_jax import recipe
from sphinx_jax.configs import mini
from sphinx_jax.training import writer
from tests.test_pod_configs import NARROW

pytestmark = pytest.mark.usefixtures('compiled_once')


def narrow(config):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name in ('real', 'synthetic', 'stage2'):
      del config[name].model.encoders, config[name].model.llm
      config[name].model.update(NARROW)
      config[name].model.llm.vocab = config.data.vocab
      config[name].update(steps=4, log_every=1, eval_every=4, eval_batches=1)
      config[name].batch.update(seq_len=512, images=16, size=8, window=256)
      config[name].checkpoint.every = 4
    config.data.train = dict(objects=24, words=12, page=12, figure=12)
    config.data.heldout = 6
    config.evaluate.examples, config.mix.coefficients = 3, (0.0, 0.5, 1.0)
  return config.lock()


def test_every_family_is_trained_and_scored_from_official_files(tmp_path):
  recipe.run_recipe(narrow(mini.get_config('quick,dataset_files')), tmp_path)
  assert not any(
    entry['source'] == 'miniworld'
    for entry in json.loads((tmp_path / 'config.json').read_text())['stage2']['mixture'].values()
  )
  lines = writer.read(tmp_path / 'stage2')
  trained = {name.split('/')[1] for line in lines for name in line if name.startswith('loss/')}
  assert trained == {*mini.TASKS, 'dialog'}
  assert {name for name in lines[-1] if name.startswith('validation/')} == {
    f'validation/{task}' for task in mini.TASKS
  }
  results = json.loads((tmp_path / 'evaluate' / 'results.json').read_text())
  assert set(results) == {*mini.TASKS} - {'text'} and all(
    result['examples'] == 3 for result in results.values()
  )
  page = (tmp_path / 'report.html').read_text()
  assert all(task in page for task in results)
