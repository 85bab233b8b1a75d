"""Every setting has a type and a range, which are checked before anything is opened."""

import random
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

import sphinx_jax
from sphinx_jax import recipe, run, settings, train
from sphinx_jax.checkpoint import store
from sphinx_jax.configs import forkme, mini, recipe as pod_recipe, stage1, stage2
from sphinx_jax.core import cli, config_values, errors
from sphinx_jax.models import sphinx
from sphinx_jax.models.settings import MODEL
from sphinx_jax.training import writer
from tests.test_train import in_memory
from tests.tiny import tiny

VALUES = (-1, 0, 1, 10**20, 0.5, None, 'text', float('nan'), np.int64(1))


def sections():
  """(name, plain section, function that checks it) of the shipped configs, without repetitions."""
  for config in (mini.get_config(), mini.get_config('dataset_files'), pod_recipe.get_config()):
    for name in config.steps:
      table = settings.STEPS[config[name].kind]
      check = settings.check_run if config[name].kind == 'train' else None
      yield config[name].to_dict(), check or (lambda s, table=table: config_values.check(s, table))
  for config in (stage1.get_config('7b,224'), stage2.get_config('7b,2k'), forkme.get_config()):
    yield config.to_dict(), settings.check_run


def changed(section):
  """Yields (path, value) while that value stands in the section, for all of its values."""
  for key, old in list(section.items()):
    if isinstance(old, dict):
      for path, value in changed(old):
        yield f'{key}.{path}', value
      continue
    values = list(VALUES)
    if isinstance(old, tuple):
      values += [old[:-1], (*old, *old[-1:]), ()]
      for place in range(len(old)):
        values += [(*old[:place], value, *old[place + 1 :]) for value in VALUES]
    for value in values:
      section[key] = value
      yield key, value
    section[key] = old


def test_every_value_is_accepted_or_refused_in_one_line():
  tried, refused, seen = 0, 0, set()
  for section, check in sections():
    check(section)
    for path, value in changed(section):
      # Entries of a mixture have one table.
      place = (
        re.sub(r'^(mixture|validation)\.\w+', r'\1', path),
        repr(value),
        section['kind'] if ('kind' in section) else '',
      )
      if place in seen:
        continue
      seen.add(place)
      tried += 1
      try:
        check(section)
      except errors.SphinxError as error:
        refused += 1
        assert '\n' not in str(error) and path.split('.')[-1] in str(error)
  assert tried > 2000 and refused > 0.6 * tried


def accepted(config: ConfigDict, names: tuple[str, ...]) -> list[tuple[str, object]]:
  """Changes of some sections of a run that the table accepts."""
  section = config.to_dict()
  found = []
  for path, value in changed(section):
    if path.startswith(names):
      try:
        settings.check_run(section)
      except errors.SphinxError:
        continue
      found.append((path, value))
  return found


def with_change(config: ConfigDict, path: str, value: object) -> ConfigDict:
  config = config.copy_and_resolve_references()
  *parents, key = path.split('.')
  section = config
  for parent in parents:
    section = section[parent]
  with config.unlocked(), section.ignore_type():
    section[key] = value
  return config


NUMBERS = ('optimizer', 'batch', 'steps', 'log_every', 'eval_every', 'checkpoint', 'seed')


def train_or_refuse(config: ConfigDict, workdir) -> bool:
  try:
    train.train(config, workdir)
  except errors.SphinxError as error:
    assert '\n' not in str(error)
    return False
  return True


def test_accepted_values_train(tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())
  base = tiny(**{'steps': 2, 'model.encoders': {}, 'batch.images': 0, 'checkpoint.every': 0})
  changes = random.Random(3).sample(accepted(base, NUMBERS), 4)
  for number, change in enumerate(changes):
    train_or_refuse(with_change(base, *change), tmp_path / f'{number}')


@pytest.mark.slow
def test_forty_accepted_values_of_mini_train_a_step(tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())
  base = with_change(run.training_run(mini.get_config(), 'real'), 'steps', 7)
  for number, change in enumerate(random.Random(5).sample(accepted(base, (*NUMBERS, 'model')), 40)):
    train_or_refuse(with_change(base, *change), tmp_path / f'{number}')


@pytest.mark.slow
@pytest.mark.parametrize('config', [stage1.get_config('7b,224'), stage2.get_config('7b,1k')])
def test_accepted_values_of_pod_configs_are_traced(config):
  with config.unlocked():
    config.mesh.fsdp = 1
  names = ('model', 'batch', 'optimizer', 'mesh')
  for change in random.Random(7).sample(accepted(config, names), 20):
    try:
      run.Program(with_change(config, *change)).trace()
    except errors.SphinxError as error:
      assert '\n' not in str(error)
