"""A run and a checkpoint written by version 0.1, with the old names of settings, still work.

tests/golden/run_0_1.tar.gz has a run that stopped at step 2 of 4, its data, and the metrics of the
same run without the stop.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest
from ml_collections import ConfigDict

import sphinx_jax
from sphinx_jax import train
from sphinx_jax.core import cli, config as config_lib, errors

ARCHIVE = pathlib.Path(__file__).parent / 'golden' / 'run_0_1.tar.gz'
OLD_CONFIG = """
import json
from ml_collections import ConfigDict


def get_config():
  config = json.loads(open('run/config.json').read())
  assert 'trained' in config and 'rows' in config['batch']
  return ConfigDict(config)
"""


@pytest.fixture
def old_run(tmp_path, monkeypatch):
  """The folder that the old run was started in."""
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path)
  return tmp_path


def _new_keys() -> ConfigDict:
  config = config_lib.from_json(pathlib.Path('run/config.json').read_text())
  assert 'trained' not in config and set(config.batch) == {'images', 'window', 'size', 'seq_len'}
  return config


def _old_keys() -> ConfigDict:
  pathlib.Path('old.py').write_text(OLD_CONFIG)
  return cli.load_config('old.py')


def _metrics(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('load_config', [_old_keys, _new_keys])
def test_an_old_run_resumes_with_the_same_losses(old_run, load_config):
  train.train(load_config(), 'run')
  written = _metrics(old_run / 'run' / 'metrics.jsonl')
  expected = _metrics(old_run / 'expected_metrics.jsonl')
  assert [line['step'] for line in written] == [line['step'] for line in expected]
  for line, want in zip(written, expected):
    for name in ('loss', 'loss/mine', 'grad_norm', 'learning_rate', 'validation/mine'):
      if name in want:
        assert line[name] == pytest.approx(want[name], rel=1e-5), (line['step'], name)


def test_an_old_checkpoint_loads_and_answers(old_run):
  model = sphinx_jax.load('run')
  image = np.zeros((16, 16, 3), np.uint8)
  assert isinstance(model.chat([('what is this', None)], image, max_new_tokens=4), str)


def test_an_old_run_of_another_config_is_refused_by_the_new_names(old_run):
  config = _new_keys()
  with config.unlocked():
    config.batch.size = 4
  with pytest.raises(errors.SphinxError, match='batch.size: 2 there, 4 here'):
    train.train(config, 'run')
