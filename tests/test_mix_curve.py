"""The line between two checkpoints, with the real model at a tiny width and batches in memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax import mix_curve, mix_measure, run as run_lib
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.evaluation import held_out, weight_curve
from tests.tiny import make_batch, tiny


def params(value: float) -> dict:
  return {
    'llm': {'w': jnp.full((2, 2), value)},
    'encoders': {'w': jnp.full((3,), value, jnp.bfloat16)},
  }


def test_curve_measures_every_mix_with_the_parents_at_its_ends():
  seen = []

  def evaluate(mixed: dict, share: float) -> dict[str, float]:
    seen.append(mixed)
    return {'real': float(mixed['llm']['w'].sum()), 'share': share}

  points = weight_curve.measure((params(1.0), params(3.0)), (0, 0.5, 1), evaluate)
  assert [(point['coefficient'], point['real']) for point in points] == [
    (0.0, 12.0),
    (0.5, 8.0),
    (1.0, 4.0),
  ]
  assert all(point['share'] == point['coefficient'] for point in points)
  jax.tree.map(np.testing.assert_array_equal, (seen[0], seen[2]), (params(3.0), params(1.0)))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Returns two checkpoints of one run's config, their losses, and the compiled program."""
  folder, config = tmp_path_factory.mktemp('runs'), tiny(**{'mesh.fsdp': 2})
  program, losses = run_lib.Program(config), {}
  real = program.init()
  synthetic = jax.tree.map(lambda leaf: 1.5 * leaf, real)
  for name, trained in (('real', real), ('synthetic', synthetic)):
    losses[name] = program.evaluate(trained, {'real': [make_batch(config, 10**6)]})['real']
    with store.Store(folder / name) as run:
      run.save(3, trained, None, Bundle(config, b'pieces', {}).to_meta())
  return folder, losses, program


@pytest.fixture
def memory(monkeypatch, runs):
  """Takes validation batches from memory; the config has to use the checkpoint's tokenizer."""

  def open_data(config, local_rows=None):
    assert config.tokenizer == '' and config.init_from
    return run_lib.Data(None, lambda: {'real': [make_batch(config, 10**6)]}, None, '', None)

  monkeypatch.setattr(run_lib, 'open_data', open_data)
  monkeypatch.setattr(run_lib, 'Program', lambda config: runs[2])


def test_losses_along_the_line_are_drawn_and_no_checkpoint_is_written(runs, memory, tmp_path):
  folder, losses, _ = runs
  points = mix_curve.draw_curve(
    [folder / 'real', folder / 'synthetic'], (0, 0.25, 1), tmp_path / 'curve'
  )
  assert [point['coefficient'] for point in points] == [0, 0.25, 1]
  assert points[0]['real'] == losses['synthetic'] and points[2]['real'] == losses['real']
  assert points[1]['real'] not in losses.values()
  assert json.loads((tmp_path / 'curve' / 'curve.json').read_text()) == points
  assert (tmp_path / 'curve' / 'curve.png').read_bytes().startswith(b'\x89PNG')
  assert {path.name for path in (tmp_path / 'curve').iterdir()} == {'curve.json', 'curve.png'}


def test_a_config_of_another_model_is_refused(runs, memory, tmp_path):
  folder, *_ = runs
  config = tiny(**{'model.llm.norm_eps': 0.1})
  with pytest.raises(errors.SphinxError, match="'--config': got another model .llm.norm_eps"):
    mix_curve.draw_curve([folder / 'real', folder / 'synthetic'], (0, 1), tmp_path, config)


def test_tasks_are_scored_with_every_mix(runs, memory, tmp_path, monkeypatch):
  folder, *_ = runs
  calls = []

  def score(model, sources, examples, folder, run, params):
    calls.append((list(sources), examples, folder.name, run))
    squares = (jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(params))
    return dict.fromkeys(sources, float(sum(squares)))

  monkeypatch.setattr(mix_measure, 'Model', lambda *parts: parts)
  monkeypatch.setattr(held_out, 'score', score)
  monkeypatch.setattr(held_out, 'open_split', lambda config, names, split: dict.fromkeys(names))
  monkeypatch.setattr(run_lib, 'open_tokenizer', lambda config: 'pieces')
  points = mix_curve.draw_curve(
    [folder / 'real', folder / 'synthetic'], (0, 1), tmp_path, tasks=['vqa'], examples=7
  )
  assert [call[:3] for call in calls] == [(['vqa'], 7, '0'), (['vqa'], 7, '1')]
  assert calls[0][3] != calls[1][3] and points[0]['task/vqa'] != points[1]['task/vqa']


def test_a_curve_without_anything_to_measure_is_an_error(runs, memory, tmp_path):
  folder, *_ = runs
  inputs = [folder / 'real', folder / 'synthetic']
  with pytest.raises(errors.SphinxError, match="got 'vqs', .*did you mean 'vqa'"):
    mix_curve.draw_curve(inputs, (0, 1), tmp_path, tasks=['vqs'])
  config = config_lib.from_json('{"name": "converted", "model": {}}')
  for name, tokenizer in (('converted', b'pieces'), ('foreign', b'other')):
    with store.Store(tmp_path / name) as run:
      run.save(1, params(1.0), None, Bundle(config, tokenizer, {}).to_meta())
  converted = tmp_path / 'converted'
  with pytest.raises(errors.SphinxError, match='give --config'):
    mix_curve.draw_curve([converted, converted], (0, 1), tmp_path)
  with pytest.raises(errors.SphinxError, match='another tokenizer'):
    mix_curve.draw_curve([tmp_path / 'foreign', inputs[0]], (0, 1), tmp_path)
