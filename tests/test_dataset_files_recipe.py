"""The laptop recipe from the file formats of published datasets, with a narrow model."""

import contextlib
import json

import pytest

from sphinx_jax import recipe, run
from sphinx_jax.configs import mini
from sphinx_jax.core import batch as batch_contract
from sphinx_jax.evaluation import held_out
from sphinx_jax.models import families
from sphinx_jax.training import writer
from tests.narrow import narrow_recipe


@pytest.fixture(scope='module')
def with_data(tmp_path_factory):
  """The config, and a workdir in which the data step is done."""
  config = narrow_recipe(mini.get_config('quick,dataset_files'))
  workdir = tmp_path_factory.mktemp('files')
  (workdir / 'data').mkdir()
  recipe.data_step(config, 'data', workdir)
  return config, workdir


@pytest.mark.parametrize('name', ['real', 'synthetic', 'stage2'])
def test_every_stage_makes_batches_from_dataset_files(with_data, name):
  recipe_config, workdir = with_data
  config = run.training_run(recipe_config, name, workdir)
  assert not any(entry.source == 'miniworld' for entry in config.mixture.values())
  data = run.open_data(config)
  assert all(data.validation().values()) and set(data.validation()) == set(config.validation)
  tasks = set()
  with contextlib.closing(data.batches(0)) as batches:
    for _ in range(4):
      batch, _ = next(batches)
      batch_contract.check(batch, families.visual_tokens(config.model))
      tasks |= set(batch['task'][batch['segments'] > 0].tolist())
  common = {number for number, entry in enumerate(config.mixture.values()) if entry.weight >= 0.09}
  assert common <= tasks


def test_every_task_has_held_out_dataset_files(with_data):
  config, workdir = with_data
  stage = run.training_run(config, 'stage2', workdir)
  sources = held_out.open_split(stage, config.evaluate.tasks, config.evaluate.split)
  assert set(sources) == set(mini.TASKS) - {'text'}
  assert all(len(source) for source in sources.values())


@pytest.mark.slow
def test_every_family_is_trained_and_scored_from_dataset_files(tmp_path):
  recipe.run_recipe(narrow_recipe(mini.get_config('quick,dataset_files')), tmp_path)
  written = json.loads((tmp_path / 'config.json').read_text())
  assert not any(entry['source'] == 'miniworld' for entry in written['stage2']['mixture'].values())
  lines = writer.read(tmp_path / 'stage2')
  trained = {name.split('/')[1] for line in lines for name in line if name.startswith('loss/')}
  assert trained == {*mini.TASKS, 'dialog'}
  validated = {name for name in lines[-1] if name.startswith('validation/')}
  assert validated == {f'validation/{task}' for task in mini.TASKS}
  results = json.loads((tmp_path / 'evaluate' / 'results.json').read_text())
  assert set(results) == {*mini.TASKS} - {'text'}
  assert all(result['examples'] == 3 for result in results.values())
  page = (tmp_path / 'report.html').read_text()
  assert all(task in page for task in results)
