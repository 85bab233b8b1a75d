"""The configs of pods, with a small model and batch, and few updates."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from sphinx_jax import convert, recipe, run
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle, load_bundle
from sphinx_jax.configs import idefics2, recipe as recipe_config, stage1, stage2
from sphinx_jax.core import batch as batch_contract, errors
from sphinx_jax.models import families
from sphinx_jax.training import writer
from tests import paper_data, release
from tests.models import idefics2_golden
from tests.narrow import narrow_run

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """The directory that a run is started in: the data that the configs name, and fresh weights."""
  directory = tmp_path_factory.mktemp('start')
  paper_data.write(directory / 'data')
  config = narrow_run(stage1.get_config())
  params = jax.tree.map(np.asarray, run.Program(config).init())
  bundle = Bundle(config, release.TOKENIZER.read_bytes(), {'system': ''})
  with store.Store(directory / 'fresh') as fresh:
    fresh.save(0, params, None, bundle.to_meta())
  release_folder = convert.open_sources([idefics2_golden.FOLDER / 'model'])
  convert.import_checkpoint(release_folder, directory / 'idefics2')
  return directory


@pytest.mark.parametrize(
  'get_config, arg, parent',
  [
    (stage1.get_config, '7b,224', 'fresh'),
    (stage1.get_config, '7b,224,synthetic', 'fresh'),
    (stage2.get_config, '7b,224', 'fresh'),
    (idefics2.get_config, 'whole', 'idefics2'),
  ],
)
def test_a_stage_starts_from_fresh_weights_with_batches_of_its_data(
  start, monkeypatch, get_config, arg, parent
):
  """Everything that train does before it compiles, and the trace of the update."""
  monkeypatch.chdir(start)
  config = narrow_run(get_config(arg))
  with config.unlocked():
    config.init_from = str(start / parent)
  program = run.Program(config)
  data = run.open_data(config)
  run.check_parent(config, program, data)
  assert set(data.validation()) == set(config.validation) and all(data.validation().values())
  with contextlib.closing(data.batches(0)) as batches:
    batch, position = next(batches)
  batch_contract.check(batch, families.visual_tokens(config.model))
  assert position == config.batch.size and batch['loss_weight'].sum() > 0
  metrics = program.trace().out_info[1]
  assert metrics['task_loss'].shape == (len(config.mixture),)


@pytest.mark.slow
def test_the_recipe_of_pods_runs_from_fresh_weights_to_stage_2(start, monkeypatch):
  monkeypatch.chdir(start)
  config = recipe_config.get_config('7b,224').copy_and_resolve_references()
  with config.unlocked():
    for name in ('real', 'synthetic', 'stage2'):
      config[name] = narrow_run(config[name])
    config.real.init_from = str(start / 'fresh')
    config.mix.coefficients = (0.0, 0.5, 1.0)
  recipe.run_recipe(config.lock(), start / 'run')
  assert {path.parent.name for path in start.glob('run/*/done.json')} == set(config.steps)
  choice = json.loads((start / 'run' / 'mix' / 'choice.json').read_text())
  assert choice['coefficient'] in (0.0, 0.5, 1.0)
  last = writer.read(start / 'run' / 'stage2')[-1]
  assert last['step'] == 2
  assert np.isfinite([value for name, value in last.items() if 'loss' in name]).all()
  assert load_bundle(start / 'run' / 'stage2').tokenizer == load_bundle(start / 'fresh').tokenizer
  check_the_mix_curve_of_its_runs(start)


def check_the_mix_curve_of_its_runs(start):
  def mix_curve(*flags):
    return subprocess.run(
      [sys.executable, '-m', 'sphinx_jax.mix_curve', *flags, f'--output={start}/curve'],
      cwd=start,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      timeout=300,
    )

  done = mix_curve('--inputs=run/real,run/synthetic', '--points=2')
  assert done.returncode == 0, done.stderr
  points = json.loads((start / 'curve' / 'curve.json').read_text())
  assert [sorted(point) for point in points] == [['coefficient', 'real', 'synthetic']] * 2
  assert (start / 'curve' / 'curve.png').exists()
  recipe_points = json.loads((start / 'run' / 'mix' / 'curve.json').read_text())
  ends = [recipe_points[0]['coefficient'], recipe_points[-1]['coefficient']]
  assert [point['coefficient'] for point in points] == ends == [0, 1]
  for flags, words in (
    (['--inputs=run/real'], 'two'),
    (['--inputs=run/real,run/synthetic', '--tasks=caption'], 'config.validation.caption'),
  ):
    done = mix_curve(*flags)
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
    stages(get_config('2k'))[-1].batch.seq_len == 12288
    and stages(get_config())[-1].model.llm.layers == 40
  )
  with pytest.raises(errors.SphinxError, match="'14b', expected one of .*did you mean '13b'"):
    get_config('14b')


def test_a_mixture_of_experts_has_scales_and_a_mesh_of_its_own():
  run = stage2.get_config('moe,512')
  assert run.model.image_size == 512 and run.model.llm.name == 'mixtral' and run.mesh.expert == 8
  assert run.optimizer.lr == pytest.approx(5e-6)  # As the official README advises.
  assert stage1.get_config('moe,1k').model.image_size == 1024
  assert 'expert' not in stage2.get_config('moe,512,fsdp').mesh
  stages = recipe_config.get_config('moe,1k')
  assert [stages[name].model.image_size for name in ('real', 'stage2')] == [512, 1024]
  for arg in ('moe,224', '13b,512'):
    with pytest.raises(errors.SphinxError, match='scale of .*expected one of'):
      stage2.get_config(arg)


def test_an_image_of_idefics2_is_whole_or_split():
  whole, split = idefics2.get_config(), idefics2.get_config('split,fsdp_tensor')
  assert (whole.model.image_size, split.model.image_size) == (980, 490)
  assert whole.batch.images % 5 and split.batch.images % 5 == 0 and split.model.slots.split
  assert split.mesh.tensor == 4 and whole.dialog.style == 'idefics2'
  with pytest.raises(errors.SphinxError, match="'wohle', expected one of .*did you mean 'whole'"):
    idefics2.get_config('wohle')
