"""Every setting has a type and a range, which are checked before anything is opened."""

import random
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from sphinx_jax import recipe, run, settings, train
from sphinx_jax.checkpoint import bundle
from sphinx_jax.configs import forkme, mini, mini_idefics, recipe as pod_recipe, stage1, stage2
from sphinx_jax.core import cli, config_values, errors
from sphinx_jax.generate import load
from sphinx_jax.training import writer
from tests.test_train import in_memory
from tests.tiny import tiny

VALUES = (-1, 0, 1, 10**20, 0.5, None, 'text', float('nan'), np.int64(1))


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'eval_every': -1}, 'eval_every: got -1, expected an integer in .0, .*0: only at the end'),
    ({'log_every': 0}, 'log_every: got 0'),
    ({'profile': (4, 6)}, r'profile: got \(4, 6\), expected the first and the last update'),
    ({'profile': (3,)}, r'profile: got \(3,\)'),
    ({'checkpoint.every': 0}, 'checkpoint.every: got 0'),
    ({'optimizer.accumulate': 0}, 'optimizer.accumulate: got 0, expected an integer other than 0'),
    ({'batch.window': 0}, 'batch.window: got 0'),
    ({'batch.size': 0}, 'batch.size: got 0'),
    (
      {'optimizer.betas': (0.9,)},
      r'optimizer.betas: got \(0.9,\), expected a tuple of 2, each a number in',
    ),
    ({'checkpoint.keep': 0}, 'checkpoint.keep: got 0'),
    ({'eval_batches': 0}, 'eval_batches: got 0 with the validation sets real'),
    ({'steps': -1}, 'steps: got -1'),
    ({'steps': 0}, 'steps: got 0'),
    ({'optimizer.lr': -1.0}, 'optimizer.lr: got -1.0, expected a number in .0, '),
    ({'optimizer.lr': float('nan')}, 'optimizer.lr: got nan'),
    ({'seed': 99999999999999999999}, 'seed: got 99999999999999999999'),
    ({'seed': 10**5000}, 'seed: got an integer of 16610 bits'),
    (
      {'model.dtype': 'fp16'},
      "model.dtype: got 'fp16', expected one of bfloat16, float16, float32",
    ),
    ({'model.dtype': 'bf16'}, "model.dtype: got 'bf16'.*did you mean 'bfloat16'"),
    ({'name': None}, 'name: got None, expected a text'),
    ({'optimizer.warmup': 6}, 'optimizer.warmup: got 6, expected at most steps, 5'),
    ({'optimizer.accumulate': 3}, 'batch.size: got 8, expected a multiple of optimizer.accumulate'),
    ({'batch.size': 2**20, 'batch.seq_len': 2**20}, 'batch.size: got 1048576 rows of 1048576'),
    ({'mesh.fsdp': 0}, 'mesh.fsdp: got 0, expected an integer other than 0'),
    ({'trainable': (('(', 'train'),)}, 'trainable: .*a regular expression'),
    ({'sampling.stages': ((0, {'ocr': 1.0}),)}, 'sampling.stages'),
    ({'mixture': {}}, 'mixture: got no entries'),
  ],
)
def test_a_wrong_setting_is_refused_before_the_workdir_is_made(changes, words, tmp_path):
  with pytest.raises(errors.SphinxError, match=words):
    train.train(tiny(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_unknown_and_missing_settings_are_named():
  plain = tiny().to_dict()
  plain['optimizer']['wramup'] = 3
  with pytest.raises(errors.SphinxError, match="optimizer.wramup: .*did you mean 'warmup'"):
    settings.check_run(ConfigDict(plain))
  del plain['optimizer']['wramup'], plain['optimizer']['clip']
  with pytest.raises(errors.SphinxError, match='optimizer.clip: got nothing'):
    settings.check_run(ConfigDict(plain))


def test_a_config_of_another_command_names_the_command():
  with pytest.raises(errors.SphinxError, match='that of a recipe.*python -m sphinx_jax.recipe'):
    train.train(mini.get_config(), 'unused')
  with pytest.raises(errors.SphinxError, match='of one training run.*python -m sphinx_jax.train'):
    recipe.run_recipe(tiny(), 'unused')


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'stage2.batch.size': 0}, 'stage2.batch.size: got 0'),
    ({'data.heldout': 0}, 'data.heldout: got 0'),
    ({'data.vocab': 700}, 'real.model.llm.vocab: got 640, expected at least data.vocab 700'),
    ({'mix.coefficients': ()}, 'mix.coefficients'),
    ({'mix.inputs': ('real', 'stage2')}, "mix.inputs: got 'stage2'"),
    ({'real.eval_batches': 1}, "mix.inputs: got 'real' with eval_batches 1"),
    ({'evaluate.tasks': ('vqa', 'ocrr')}, "evaluate.tasks: got 'ocrr'"),
    ({'evaluate.checkpoint': 'mix'}, "evaluate.checkpoint: got 'mix'"),
    ({'report.targets.vqa': 80.0}, r'report.targets.vqa: got 80.0, expected a number in .0, 1\]'),
    ({'steps': ('data', 'synthetic', 'real')}, "synthetic.init_from: got 'real'"),
    ({'steps': ('data', 'real', 'report')}, 'report.kind: got report after data, real'),
    ({'steps': ('data', 'data')}, "steps: got 'data' twice"),
  ],
)
def test_a_recipe_whose_steps_contradict_each_other_is_refused(changes, words):
  config = mini.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  with pytest.raises(errors.SphinxError, match=words):
    settings.check_recipe(config)


def test_the_table_has_every_kind_of_step():
  assert set(settings.STEPS) == set(recipe.KINDS)


def test_none_leaves_a_text_out():
  config = cli._override(tiny(init_from='there'), ['--config.init_from=None'])
  assert config.init_from is None
  recipe_config = cli._override(mini.get_config(), ['--config.real.init_from=there'])
  assert recipe_config.real.init_from == 'there'


def test_the_model_of_a_checkpoint_is_checked():
  config = tiny().copy_and_resolve_references()
  with config.unlocked():
    config.model.llm.heads = 0
  carried = bundle.Bundle(config, None, {})
  with pytest.raises(errors.SphinxError, match="'DIR', config model.llm.heads: got 0"):
    load._check_model(carried, 'DIR')


def test_zero_means_a_validation_only_at_the_end(tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())
  train.train(tiny(**{'eval_every': 0}), tmp_path)
  validated = [line for line in writer.read(tmp_path) if 'validation/real' in line]
  assert [line['step'] for line in validated] == [5]


def sections():
  """(name, plain section, function that checks it) of the shipped configs, without repetitions."""
  recipes = (mini.get_config(), mini.get_config('dataset_files'), pod_recipe.get_config())
  for config in (*recipes, mini_idefics.get_config()):
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
      entry = re.sub(r'^(mixture|validation)\.[^.]+', r'\1', path)
      place = (entry, repr(value), section.get('kind'))
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
  """Of settings that are not compiled; the slow test has the others."""
  monkeypatch.setattr(run, 'open_data', in_memory())
  names = ('log_every', 'eval_every', 'checkpoint', 'max_skipped', 'loss_weighting', 'seed')
  for number, change in enumerate(random.Random(3).sample(accepted(tiny(), names), 3)):
    assert train_or_refuse(with_change(tiny(), *change), tmp_path / f'{number}')


@pytest.mark.slow
def test_forty_accepted_values_of_mini_train_a_step(tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())
  base = run.training_run(mini.get_config(), 'real')
  small = {'steps': 1, 'optimizer.warmup': 0, 'optimizer.name': 'adamw', 'batch.size': 2}
  for path, value in small.items():
    base = with_change(base, path, value)
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


@pytest.mark.parametrize('words', ['learned', 'quick,learned', 'learned,moe'])
def test_the_laptop_recipe_can_learn_its_weights(words):
  config = mini.get_config(words)
  settings.check_recipe(config)
  stage = run.training_run(config, 'stage2')
  assert any(run.learns_weights(stage, step) for step in range(1, stage.steps))
  losses = dict(stage.sampling.learned.reference_losses) | {'relation': 0.559}
  weights = run.learned_weights(stage, losses)
  assert weights['relation'] > 1.4 * mini.TASKS['relation']
  assert all(weights[task] > 0.5 * share for task, share in mini.TASKS.items())


def test_the_references_of_the_laptop_recipe_are_not_those_of_dataset_files():
  with pytest.raises(errors.SphinxError, match='got learned with dataset_files'):
    mini.get_config('dataset_files,learned')
