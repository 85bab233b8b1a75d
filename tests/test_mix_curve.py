"""The line between two checkpoints, with the real model at a tiny width and batches in memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax import mix_curve, mix_measure, run as run_lib
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.evaluation import held_out, weight_curve
from sphinx_jax.models import families
from tests import command
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
    [folder / 'real', folder / 'synthetic'], (0, 0.25, 1, 0), tmp_path / 'curve'
  )
  assert [point['coefficient'] for point in points] == [0, 0.25, 1, 0]
  assert points[3] == points[0]  # Asked for twice.
  assert points[0]['real'] == losses['synthetic'] and points[2]['real'] == losses['real']
  assert points[1]['real'] not in losses.values()
  assert json.loads((tmp_path / 'curve' / 'curve.json').read_text()) == points
  assert (tmp_path / 'curve' / 'curve.png').read_bytes().startswith(b'\x89PNG')
  written = {path.name for path in (tmp_path / 'curve').iterdir()}
  assert written == {'curve.json', 'curve.png', 'measured.jsonl'}


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


@pytest.fixture
def three(runs, tmp_path):
  """Returns the two checkpoints and a third, whose language model alone differs from the first."""
  folder, _, program = runs
  shapes = families.abstract_params(tiny().model)
  first = store.load_params(folder / 'real', shapes)
  third = first | {'llm': jax.tree.map(lambda leaf: -leaf, first['llm'])}
  meta = store.load_meta(folder / 'real')
  with store.Store(tmp_path / 'third') as run:
    run.save(3, third, None, {key: meta[key] for key in ('config', 'tokenizer', 'dialog')})
  return [folder / 'real', folder / 'synthetic', tmp_path / 'third']


def test_three_inputs_are_measured_on_a_triangle(runs, three, memory, tmp_path):
  _, losses, program = runs
  points = mix_curve.draw_triangle(three, 3, tmp_path / 'curve')
  by_row = {tuple(point['coefficients']): point['real'] for point in points}
  assert set(by_row) == {
    (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5),
  }  # fmt: skip
  assert by_row[1, 0, 0] == losses['real'] and by_row[0, 1, 0] == losses['synthetic']
  assert len(set(by_row.values())) == 6
  assert json.loads((tmp_path / 'curve' / 'curve.json').read_text()) == points
  assert (tmp_path / 'curve' / 'curve.png').read_bytes().startswith(b'\x89PNG')


def test_a_stopped_triangle_measures_only_what_is_missing(
  runs, three, memory, tmp_path, monkeypatch
):
  *_, program = runs
  evaluate, calls = program.evaluate, []

  def stopped(params, validation):
    calls.append(params)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return evaluate(params, validation)

  monkeypatch.setattr(program, 'evaluate', stopped)
  with pytest.raises(KeyboardInterrupt):
    mix_curve.draw_triangle(three, 3, tmp_path / 'stopped')
  points = mix_curve.draw_triangle(three, 3, tmp_path / 'stopped')
  assert len(calls) == 7  # Six, and the one that was under way.
  assert points == mix_curve.draw_triangle(three, 3, tmp_path / 'whole')
  # The same mixes by another method, or of other data, are other points.
  line = [mix_curve.draw_curve(three[:2], (0.5,), tmp_path / 'stopped', method='slerp')]
  line += [mix_curve.draw_curve(three[1::-1], (0.25,), tmp_path / 'stopped')]
  assert len(calls) == 15
  assert json.loads((tmp_path / 'stopped' / 'curve.json').read_text()) == line[1]


def test_the_sensitivity_moves_one_group_at_a_time(runs, three, memory, tmp_path):
  *_, program = runs
  inputs = [three[0], three[2]]
  result = mix_curve.draw_sensitivity(inputs, tmp_path / 'drawn', blocks=2)
  moved = [(entry['group'], entry['input']) for entry in result['groups']]
  names = [
    'llm/embed', 'llm/layers/.*@0', 'llm/layers/.*@1', 'llm/norm/.*', 'llm/output/.*',
  ]  # fmt: skip
  # The encoders and the projection are the same in both: there is nothing to move.
  assert moved == [(name, number) for name in names for number in (0, 1)]
  assert json.loads((tmp_path / 'drawn' / 'sensitivity.json').read_text()) == result
  assert (tmp_path / 'drawn' / 'sensitivity.png').read_bytes().startswith(b'\x89PNG')

  # The second layer from the third checkpoint, the rest from the middle.
  shapes = program.params
  first, third = (store.load_params(place, shapes) for place in inputs)
  mixed = jax.tree.map(lambda a, b: (a + b) / 2, first, third)
  layers = jax.tree.map(
    lambda middle, own: middle.at[1].set(own[1]), mixed['llm']['layers'], third['llm']['layers']
  )
  mixed['llm'] = mixed['llm'] | {'layers': layers}
  loss = program.evaluate(mixed, {'real': [make_batch(tiny(), 10**6)]})['real']
  entry = next(e for e in result['groups'] if (e['group'], e['input']) == (names[2], 1))
  assert entry['values']['real'] == pytest.approx(loss, rel=1e-5)
  assert entry['change']['real'] == entry['values']['real'] - result['uniform']['real']
  size = trees.count(third['llm']['layers'])
  assert entry['parameters'] == size // 2


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--inputs=a,b,c,d'], '--inputs: got 4 inputs, expected two for a line, or three'),
    (['--inputs=a'], '--inputs: got 1 inputs'),
    (['--inputs=a,b,c', '--method=slerp'], '--method: got slerp with three inputs'),
    (['--inputs=a,b,c', '--coefficients=0,1'], 'with three inputs'),
    (['--inputs=a,b', '--blocks=2'], '--blocks: got 2 with a line'),
    (['--inputs=a,b', '--sensitivity', '--points=3'], '--points: got 3 with --sensitivity'),
  ],
)
def test_what_cannot_be_drawn_is_refused(capsys, arguments, message):
  assert message in command.error(capsys, 'mix_curve', *arguments, '--output=c')
