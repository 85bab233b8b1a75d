"""Mixes that held-out data choose, with the real model at a tiny width and batches in memory."""

import json

import jax
import numpy as np
import pytest

from sphinx_jax import mix_choice, mix_measure, run as run_lib
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import errors, trees
from sphinx_jax.evaluation import held_out
from sphinx_jax.mix import weights
from sphinx_jax.models import families
from tests import command
from tests.tiny import make_batch, tiny


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Returns three checkpoints of one run's config, their parameters, and the compiled program."""
  folder, config = tmp_path_factory.mktemp('runs'), tiny(**{'mesh.fsdp': 2})
  program = run_lib.Program(config)
  first = program.init()
  factors = {'a': 1.0, 'b': 1.5, 'c': -1.0}
  trees_of = {
    name: jax.tree.map(lambda leaf, factor=factor: leaf * factor, first)
    for name, factor in factors.items()
  }
  for name, params in trees_of.items():
    with store.Store(folder / name) as run:
      run.save(3, params, None, Bundle(config, b'pieces', {}).to_meta())
  return [folder / name for name in factors], list(trees_of.values()), program


@pytest.fixture
def measured(monkeypatch, runs):
  """Takes validation batches from memory, and returns how many mixes were measured."""
  calls = []

  class Program:
    batch_sharding, params = runs[2].batch_sharding, runs[2].params

    def evaluate(self, params, validation):
      calls.append([len(batches) for batches in validation.values()])
      return runs[2].evaluate(params, validation)

  def open_data(config, local_rows=None):
    batches = [make_batch(config, 10**6 + i) for i in range(3)]
    return run_lib.Data(None, lambda: {'real': batches}, None, '', None)

  monkeypatch.setattr(run_lib, 'open_data', open_data)
  monkeypatch.setattr(run_lib, 'Program', lambda config: Program())
  return calls


def test_a_greedy_soup_is_written_with_its_scores(runs, measured, tmp_path, capsys):
  inputs, params, program = runs
  output = tmp_path / 'soup'
  choice = mix_choice.mix_chosen('greedy_soup', inputs, output)
  others = ('input 1', 'input 2', 'input 3', 'uniform')
  assert all(choice['choice']['chosen'] <= choice['choice'][name] for name in others)
  # The first and the third batch choose, the second one reports.
  batches = [make_batch(tiny(), 10**6 + i) for i in range(3)]
  loss = program.evaluate(params[1], {'choice': batches[0::2], 'report': batches[1::2]})
  assert choice['choice']['input 2'] == pytest.approx(loss['choice'], rel=1e-6)
  assert choice['report']['input 2'] == pytest.approx(loss['report'], rel=1e-6)

  meta = store.load_meta(output)
  assert meta['choice'] == choice == json.loads((output / 'choice' / 'choice.json').read_text())
  shapes = families.abstract_params(tiny().model)
  mixed = trees.flatten(weights.mix(params, meta['coefficients']))
  for path, leaf in trees.flatten(store.load_params(output, shapes)).items():
    np.testing.assert_allclose(leaf, mixed[path], rtol=1e-5, atol=1e-7, err_msg=path)
  printed = capsys.readouterr().out
  for name in (*others, 'chosen'):
    row = next(line for line in printed.splitlines() if line.startswith(name))
    assert [float(cell) for cell in row.removeprefix(name).split()] == [
      pytest.approx(choice[half][name], abs=6e-5) for half in ('choice', 'report')
    ]
  assert 'on the half that did not choose, the best is: ' in printed

  # The same command again measures nothing.
  done = len(measured)
  assert mix_choice.mix_chosen('greedy_soup', inputs, output) == choice and len(measured) == done
  with pytest.raises(errors.SphinxError, match=r'chosen with other settings \(method'):
    mix_choice.mix_chosen('search', inputs, output)


def test_a_killed_search_goes_on_where_it_was(runs, measured, tmp_path):
  inputs, settings = runs[0][:2], dict(patterns=['llm/layers/.*@0', 'llm/.*'], evaluations=9)
  whole = mix_choice.mix_chosen('search', inputs, tmp_path / 'whole', seed=1, **settings)
  count = len(measured)
  assert whole['evaluations'] == 9 and whole['groups'] == settings['patterns']
  assert whole['choice']['chosen'] <= min(whole['choice'].values())
  # Besides the 9, the report has the inputs, the uniform mix and the choice at most.
  assert 9 + 3 <= count <= 9 + 4

  def killed(params, validation):
    if len(measured) == count + 5:
      raise KeyboardInterrupt
    return program_evaluate(params, validation)

  program = run_lib.Program(None)
  program_evaluate = program.evaluate
  program.evaluate = killed
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_lib, 'Program', lambda config: program)
    with pytest.raises(KeyboardInterrupt):
      mix_choice.mix_chosen('search', inputs, tmp_path / 'killed', seed=1, **settings)
  resumed = mix_choice.mix_chosen('search', inputs, tmp_path / 'killed', seed=1, **settings)
  assert len(measured) == 2 * count and resumed == whole
  lines = [(tmp_path / name / 'choice' / 'evaluations.jsonl') for name in ('whole', 'killed')]
  assert lines[0].read_text() == lines[1].read_text()
  assert (
    store.load_meta(tmp_path / 'killed')['coefficients']
    == (store.load_meta(tmp_path / 'whole')['coefficients'])
  )


def test_scores_of_tasks_choose(runs, measured, tmp_path, monkeypatch):
  inputs, scores = runs[0][:2], iter([0.2, 0.4, 0.3, 0.6, 0.5, 0.1])

  class Records(list):
    name, files = 'records', {}

  def score(model, sources, examples, folder, run, params):
    (half,) = sources.values()
    assert len(half) == {'choice': 3, 'report': 2}[folder.parent.name] and examples == 7
    return {'vqa': next(scores)}

  monkeypatch.setattr(mix_measure, 'Model', lambda *parts: parts)
  monkeypatch.setattr(held_out, 'score', score)
  monkeypatch.setattr(
    held_out, 'open_split', lambda config, names, split: {name: Records(range(5)) for name in names}
  )
  monkeypatch.setattr(run_lib, 'open_tokenizer', lambda config: 'pieces')
  choice = mix_choice.mix_chosen(
    'greedy_soup', inputs, tmp_path / 'soup', tasks=['vqa'], examples=7
  )
  assert choice['measure'] == 'score'
  # The uniform mix has 0.3: less than the second input alone, which is the choice.
  assert choice['choice'] == {'input 1': 0.2, 'input 2': 0.4, 'uniform': 0.3, 'chosen': 0.4}
  assert choice['report'] == {'input 1': 0.6, 'input 2': 0.5, 'uniform': 0.1, 'chosen': 0.5}
  assert store.load_meta(tmp_path / 'soup')['coefficients'] == [0, 1]


def test_other_data_do_not_use_what_was_measured(runs, measured, tmp_path):
  inputs = runs[0][:2]
  mix_choice.mix_chosen('greedy_soup', inputs, tmp_path / 'soup')
  (tmp_path / 'soup' / 'checkpoints').rename(tmp_path / 'checkpoints')
  with pytest.raises(errors.SphinxError, match="measured mixes in '.*choice': got answers of"):
    mix_choice.mix_chosen('greedy_soup', inputs[::-1], tmp_path / 'soup')


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--method=search', '--inputs=a'], 'got 1 inputs, expected at least two'),
    (['--method=search', '--inputs=a,b', '--coefficients=1,0'], '--coefficients: got'),
    (['--method=search', '--inputs=a,b', '--rule=llm/.*=1,0'], 'expected a pattern alone'),
    (['--method=greedy_soup', '--inputs=a,b', '--evaluations=9'], '--evaluations: got 9 with'),
    (['--method=greedy_soup', '--inputs=a,b', '--seed=1'], '--seed: got 1 with'),
    (['--inputs=a,b', '--coefficients=1,0', '--tasks=vqa'], "--tasks: got ['vqa'] with"),
  ],
)
def test_a_flag_without_an_effect_is_refused(capsys, arguments, message):
  line = command.error(capsys, 'mix_weights', *arguments, '--output=c')
  assert message in line
