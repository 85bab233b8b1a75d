"""The configs of pods, at a width that a laptop has: the same files, steps and settings otherwise."""

import base64
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from sphinx_jax import recipe
from sphinx_jax.checkpoint import store
from sphinx_jax.configs import recipe as recipe_config, stage1, stage2
from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.run import Program
from sphinx_jax.training import writer
from tests import paper_data, release

pytestmark = pytest.mark.usefixtures('compiled_once')
ROOT = pathlib.Path(__file__).parent.parent
NARROW = {
  'image_size': 16,
  'grid': 1,
  'dtype': 'float32',
  'encoders': {'clip': dict(view=16, patch=8, width=8, layers=1, heads=2)},
  'llm': dict(
    name='llama', vocab=512, width=16, layers=2, heads=4, kv_heads=4, multiple_of=8, max_length=512
  ),
}


def narrow(config):
  """A stage with a small model and batch, and few updates."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    del config.model.encoders, config.model.llm
    config.model.update(NARROW)
    config.update(steps=2, log_every=1, eval_every=2, eval_batches=1, loss_chunk=32)
    config.batch.update(size=8, seq_len=512, images=4, window=64)
    config.optimizer.update(warmup=1, lr=1e-2)
  return config


@pytest.fixture
def given(tmp_path, monkeypatch):
  """The folder that a run is started in, with the files that the configs name, and weights to start from."""
  monkeypatch.chdir(tmp_path)
  paper_data.write(tmp_path / 'data')
  config = narrow(stage1.get_config())
  with store.Store(tmp_path / 'fresh') as fresh:
    fresh.save(
      0,
      jax.tree.map(np.asarray, Program(config).init()),
      None,
      {
        'config': config_lib.to_json(config),
        'tokenizer': base64.b64encode(release.TOKENIZER.read_bytes()).decode(),
        'dialog': {'system': ''},
      },
    )
  return tmp_path


def test_the_recipe_of_pods_runs_from_fresh_weights_to_stage_2(given):
  config = recipe_config.get_config('7b,224').copy_and_resolve_references()
  with config.unlocked():
    for name in ('real', 'synthetic', 'stage2'):
      config[name] = narrow(config[name])
    config.real.init_from, config.mix.coefficients = str(given / 'fresh'), (0.0, 0.5, 1.0)
  recipe.run_recipe(config.lock(), given / 'run')
  assert {path.parent.name for path in given.glob('run/*/done.json')} == set(config.steps)
  assert json.loads((given / 'run' / 'mix' / 'choice.json').read_text())['coefficient'] in (
    0.0,
    0.5,
    1.0,
  )
  lines = writer.read(given / 'run' / 'stage2')
  assert (
    lines[-1]['step'] == 2
    and np.isfinite([value for name, value in lines[-1].items() if 'loss' in name]).all()
  )
  assert (
    store.load_meta(given / 'run' / 'stage2')['tokenizer']
    == store.load_meta(given / 'fresh')['tokenizer']
  )
  the_line_between_its_runs_is_measured_by_one_command(given)


def the_line_between_its_runs_is_measured_by_one_command(given):
  def curve(*flags):
    return subprocess.run(
      [
        sys.executable,
        '-m',
        'sphinx_jax.mix_weights',
        '--curve',
        *flags,
        f'--output={given}/curve',
      ],
      cwd=given,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      timeout=300,
    )

  assert curve('--inputs=run/real,run/synthetic', '--points=2').returncode == 0
  points = json.loads((given / 'curve' / 'curve.json').read_text())
  assert [sorted(point) for point in points] == [['coefficient', 'real', 'synthetic']] * 2 and (
    given / 'curve' / 'curve.png'
  ).exists()
  ends = [json.loads((given / 'run' / 'mix' / 'curve.json').read_text())[i] for i in (0, -1)]
  assert (
    [point['coefficient'] for point in points] == [point['coefficient'] for point in ends] == [0, 1]
  )
  for flags, words in (
    (['--inputs=run/real'], 'expected two inputs'),
    (['--inputs=run/real,run/synthetic', '--tasks=caption'], 'config.validation.caption'),
  ):
    done = curve(*flags)
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize(
  'get_config', [stage1.get_config, stage2.get_config, recipe_config.get_config]
)
def test_arguments_are_sizes_scales_and_meshes(get_config):
  stages = lambda config: (
    [config] if 'mesh' in config else [config[name] for name in ('real', 'synthetic', 'stage2')]
  )
  for stage in stages(get_config('7b,fsdp_tensor')):
    assert stage.mesh.tensor == 4 and stage.model.llm.layers == 32
  assert (
    stages(get_config('2k'))[-1].batch.seq_len == 4096
    and stages(get_config())[-1].model.llm.layers == 40
  )
  with pytest.raises(errors.SphinxError, match="'14b', expected one of .*did you mean '13b'"):
    get_config('14b')
