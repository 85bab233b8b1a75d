"""Every old name in core/renames.py is accepted, reported once, and read as the new name."""

import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from sphinx_jax import datasets
from sphinx_jax.configs import mini
from sphinx_jax.core import cli, config as config_lib, renames

ROOT = pathlib.Path(__file__).parent.parent
OLD_RUN = {
  'name': 'old',
  'mixture': {'a': {'source': 'built', 'weight': 1.0}, 'trained': {'source': 'jsonl'}},
  'validation': {'a': {'source': 'built'}},
  'batch': {'rows': 4, 'length': 64, 'images': 1, 'window': 8},
  'trained': [['encoders/.*', 'none'], ['.*', 'train']],
  'checkpoint': {'every': 2, 'keep': 1},
  'model': {'image_size': 16},
}
NEW_RUN = {
  'name': 'old',
  'mixture': {'a': {'source': 'array_record', 'weight': 1.0}, 'trained': {'source': 'jsonl'}},
  'validation': {'a': {'source': 'array_record'}},
  'batch': {'size': 4, 'seq_len': 64, 'images': 1, 'window': 8},
  'trainable': [['encoders/.*', 'frozen'], ['.*', 'train']],
  'checkpoint': {'every': 2, 'keep': 1, 'keep_every': 0},
  'model': {'image_size': 16, 'attention': 'auto'},
  'loss_chunk': 0,
  'max_skipped': 0.5,
  'sampling': {'by': 'examples', 'temperature': 1.0, 'stages': ()},
  'image': {'alpha': 'drop'},
  'profile': (),
  'wandb': '',
  'cache_features': '',
}


@pytest.fixture
def warnings(monkeypatch):
  """The texts of the warnings so far, as if no old name had been met before."""
  texts = []
  monkeypatch.setattr(renames, '_reported', set())
  monkeypatch.setattr(renames.log, 'warning', lambda text, *values: texts.append(text % values))
  return texts


def test_a_run_gets_new_names_and_defaults(warnings):
  assert renames.upgrade_config(OLD_RUN) == NEW_RUN
  assert OLD_RUN['batch']['rows'] == 4, 'the argument stays as it is'
  assert warnings == [
    "config key 'batch.rows' has been renamed: use 'batch.size'",
    "config key 'batch.length' has been renamed: use 'batch.seq_len'",
    "config key 'trained' has been renamed: use 'trainable'",
    "value of trainable 'none' has been renamed: use 'frozen'",
    "source 'built' has been renamed: use 'array_record'",
  ]


def test_a_current_config_stays_as_it_is_without_a_warning(warnings):
  assert renames.upgrade_config(NEW_RUN) == NEW_RUN
  for argument in ('', 'quick', 'dataset_files'):
    config = config_lib.to_dict(mini.get_config(argument))
    assert renames.upgrade_config(config) == config
  assert warnings == []


def test_an_old_name_is_reported_once(warnings):
  for _ in range(2):
    renames.upgrade_config({'mixture': {}, 'trained': ()})
  assert len(warnings) == 1


def test_settings_that_are_there_keep_their_values():
  settings = dict(
    loss_chunk=8, max_skipped=0.2, sampling={'by': 'tokens'}, model={'attention': 'x'}
  )
  upgraded = renames.upgrade_config({'mixture': {}} | settings)
  assert {key: upgraded[key] for key in ('loss_chunk', 'max_skipped', 'model')} == {
    key: settings[key] for key in ('loss_chunk', 'max_skipped', 'model')
  }
  assert upgraded['sampling'] == {'by': 'tokens', 'temperature': 1.0, 'stages': ()}


def test_every_section_of_a_recipe_is_upgraded():
  recipe = {
    'steps': ['data', 'stage', 'evaluate', 'report'],
    'data': {'kind': 'data', 'official': True},
    'stage': {'kind': 'train', **OLD_RUN},
    'evaluate': {'kind': 'evaluate', 'checkpoint': 'stage', 'rows': 7},
    'report': {'kind': 'report', 'aims': {'vqa': 0.5}},
  }
  assert renames.upgrade_config(recipe) == {
    'steps': ['data', 'stage', 'evaluate', 'report'],
    'data': {'kind': 'data', 'dataset_files': True},
    'stage': {'kind': 'train', **NEW_RUN},
    'evaluate': {'kind': 'evaluate', 'checkpoint': 'stage', 'batch_size': 7},
    'report': {'kind': 'report', 'targets': {'vqa': 0.5}},
  }


def test_converted_weights_and_other_configs_get_no_settings_of_a_run():
  converted = {'name': 'converted', 'model': {'grid': 1}, 'dialog': {'system': ''}}
  assert renames.upgrade_config(converted) == converted | {
    'model': {'grid': 1, 'attention': 'auto'}
  }
  benchmarks = {'mme': {'rows': 3, 'source': 'built'}}
  assert renames.upgrade_config(benchmarks) == benchmarks


def test_a_file_that_changes_an_old_key_of_a_shipped_config_keeps_its_value(tmp_path):
  (tmp_path / 'mine.py').write_text(
    'from ml_collections import ConfigDict\n'
    'from sphinx_jax.configs import mini\n'
    'def get_config(arg):\n'
    '  config = ConfigDict(mini.get_config(arg).stage2.to_dict())\n'
    '  config.batch.update(rows=3, length=512)\n'
    "  config.trained = (('encoders/.*', 'none'), ('.*', 'train'))\n"
    '  return config\n'
  )
  config = cli.load_config(f'{tmp_path}/mine.py:quick,official')
  assert config.batch.to_dict() == dict(size=3, seq_len=512, images=2, window=256)
  assert config.trainable == (('encoders/.*', 'frozen'), ('.*', 'train'))
  assert 'trained' not in config and config.is_locked
  assert config.mixture.vqa.source == 'vqav2'


@pytest.mark.parametrize(
  'command, old, new',
  [
    ('train', '--config.batch.rows=4', '--config.batch.size=4'),
    ('recipe', '--config.stage2.batch.rows=4', '--config.stage2.batch.size=4'),
    ('recipe', '--config.stage2.batch.length', '--config.stage2.batch.seq_len'),
    ('train', '-config.trained=()', '-config.trainable=()'),
    ('recipe', '--noconfig.data.official', '--noconfig.data.dataset_files'),
    ('recipe', '--config.evaluate.rows=8', '--config.evaluate.batch_size=8'),
    ('recipe', '--config.report.aims.vqa=0.5', '--config.report.targets.vqa=0.5'),
    ('evaluate', '--rows=8', '--batch_size=8'),
    ('evaluate', '--official', '--official_scoring'),
    ('evaluate', '--noofficial', '--noofficial_scoring'),
    ('peek', '--rows=8', None),
    ('train', '--config.mixture.trained.weight=2', None),
    ('train', '--config.mixture.rows=2', None),
    ('train', '--workdir=--rows', None),
    ('train', 'batch.rows', None),
  ],
)
def test_old_flags_of_a_command_line(command, old, new, warnings):
  program = f'/somewhere/sphinx_jax/{command}.py'
  assert renames.upgrade_arguments([program, '--x=1', old]) == [program, '--x=1', new or old]
  assert len(warnings) == bool(new)


def test_a_flag_that_became_a_command():
  arguments = ['/somewhere/mix_weights.py', '--inputs=a,b', '--curve', '--output=c']
  assert renames.command_of_flags(arguments) == [
    '-m', 'sphinx_jax.mix_curve', '--inputs=a,b', '--output=c',
  ]  # fmt: skip
  assert renames.command_of_flags(['/somewhere/mix_weights.py', '--inputs=a,b']) is None
  assert renames.command_of_flags(['/somewhere/train.py', '--curve']) is None


def test_every_new_name_exists():
  assert set(renames.SOURCES.values()) <= {*datasets.SOURCES, *datasets.FAMILIES}
  assert not set(renames.SOURCES) & {*datasets.SOURCES, *datasets.FAMILIES}
  for module in [*renames.COMMANDS.values(), *renames.COMMANDS_OF_FLAGS.values()]:
    assert (ROOT / f'{module.replace(".", "/")}.py').is_file()
  for name, words in renames.CONFIG_ARGUMENTS.items():
    for old, new in words.items():
      assert cli.load_config(f'{name}:{old}') == cli.load_config(f'{name}:{new}')
  for command, names in renames.FLAGS.items():
    source = (ROOT / 'sphinx_jax' / f'{command}.py').read_text()
    for old, new in names.items():
      assert f"'{new}'" in source and f"  '{old}'," not in source


def _run(*arguments, cwd=ROOT):
  return subprocess.run(
    [sys.executable, '-m', *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=120,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


def test_an_old_override_reaches_the_setting_and_warns():
  done = _run('sphinx_jax.recipe', '--config=mini', '--config.stage2.batch.rows=many')
  assert done.returncode == 2 and '--config.stage2.batch.size=many' in done.stderr
  assert done.stderr.count('has been renamed') == 1


@pytest.mark.parametrize(
  'arguments, name',
  [
    (['sphinx_jax.data.build', '--help'], 'sphinx_jax.prepare'),
    (['sphinx_jax.mix_weights', '--curve', '--help'], 'sphinx_jax.mix_curve'),
  ],
)
def test_old_commands_run_the_new_ones(arguments, name):
  done = _run(*arguments)
  assert f"use 'python -m {name}'" in done.stderr
  assert name in done.stdout and 'Traceback' not in done.stderr


def test_an_old_config_dict_keeps_the_types_of_its_settings():
  config = ConfigDict({'mixture': {}, 'batch': {'rows': 4}, 'trained': (('.*', 'none'),)}).lock()
  upgraded = renames.upgrade_loaded(config)
  assert upgraded is config and config.is_locked and config.get_type('trainable') is tuple
  assert config.trainable == (('.*', 'frozen'),) and config.sampling.stages == ()
