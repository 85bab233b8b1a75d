import json
import pathlib
import sys

import jax
import pytest

from sphinx_jax import plan as plan_command, run as run_lib, train
from sphinx_jax.configs import forkme, recipe, stage2
from sphinx_jax.core import errors
from sphinx_jax.models import families, layers
from sphinx_jax.planning import (
  compiler_dumps,
  largest,
  plan as plans,
  search,
  sheet,
  slices,
  smallest_slices,
)
from sphinx_jax.run import Program
from tests import command
from tests.tiny import tiny

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def planner():
  return plans.Planner(Program)


@pytest.fixture(scope='module')
def large(planner):
  """The plan of a shipped config of 13B parameters, without a compiler."""
  return planner.plan(stage2.get_config('13b,1k'), slices.find('v5p:4x4x4'), compile_it=False)


def test_a_plan_has_every_section_without_reading_a_weight(large):
  parameters = sum(leaf.nbytes for leaf in large.leaves if leaf.kind == 'trained') / 4
  assert 13e9 < parameters < 13.2e9
  assert large.resident_bytes['optimizer'] == pytest.approx(
    2 * large.resident_bytes['trained'], rel=1e-4
  )
  assert large.resident_bytes['trained'] == pytest.approx(4 * parameters / 64, rel=0.01)
  assert large.fits and large.headroom == large.slice.chip.hbm - large.total
  # 6 FLOP per weight and position, plus attention and encoders.
  assert 1 < sum(large.flops.parts.values()) / (6 * parameters * 64 * 8192) < 1.2
  text = sheet.text(large)
  for words in (
    'parameters, trained',
    'parameters, frozen',
    'optimizer',
    'gradients',
    'activations',
    'headroom of 95.74 GiB',
    'llm/layers/feed_forward/w1/kernel',
    'Replicated leaves over 1 MiB: none',
    'dinov2',
    'recomputed by remat',
    'estimate',
    'tokens/s',
    'examples/s',
    'days for 15,000 steps',
    "pip install 'sphinx_jax[plan]'",
  ):
    assert words in text, words


def test_a_plan_of_a_mixture_counts_what_computes_and_what_moves(planner):
  config = with_one_encoder(stage2.get_config('moe,512'))
  experts = planner.plan(config, slices.find('v5p:2x4x4'), compile_it=False)
  assert experts.mesh['expert'] == 8 and experts.batch_ways == 32
  assert '12.88 B of the 46.70 B parameters' in sheet.text(experts)
  # Six FLOP for every parameter that computes a token, and those of attention.
  positions = config.batch.size * config.batch.seq_len
  computed = experts.flops.parts['llm'] + experts.flops.parts['lm_head']
  active = families.count_active(config.model) - config.model.llm.vocab * config.model.llm.width
  assert 6 * active * positions < computed < 1.1 * 6 * active * positions
  whole = planner.plan(
    plans.changed(config, {'mesh.expert': 1}), slices.find('v5p:2x4x4'), compile_it=False
  )
  # Positions move to experts that stay where they are, in place of all weights.
  assert experts.roofline.ici < whole.roofline.ici / 2
  assert experts.activations['weights'] < whole.activations['weights'] / 2
  held = lambda plan: sum(leaf.local_nbytes for leaf in plan.leaves)
  assert held(experts) == pytest.approx(held(whole), rel=0.01)
  # The estimates of what libtpu compiled with all encoders, see docs/results.md.
  assert experts.estimated / 2**30 == pytest.approx(47.3, rel=0.04)
  other = planner.plan(config, slices.find('v6e:8x8'), compile_it=False)
  assert other.estimated / 2**30 == pytest.approx(24.9, rel=0.04)


def test_a_run_that_does_not_fit_is_marked(planner):
  small = planner.plan(stage2.get_config('13b,2k'), slices.find('v5e:4x4'), compile_it=False)
  assert not small.fits and small.headroom < 0 and 'DOES NOT FIT' in sheet.text(small)


def with_one_encoder(config):
  """One is traced faster than four."""
  return plans.changed(config, {'model.encoders': {'clip': config.model.encoders.clip}})


@pytest.fixture(scope='module')
def on_one_device(planner):
  config = with_one_encoder(stage2.get_config('7b,224'))
  adapters = forkme.adapters('qlora')
  settings = {
    'optimizer.lr': adapters.pop('optimizer')['lr'],
    'mesh.fsdp': 1,
    'init_from': 'BASE',
    'model.remat': 'full',
  }
  return largest.at_once(plans.changed(config, settings | adapters), 1)


def test_the_largest_batch_fits_and_one_row_more_does_not(planner, on_one_device):
  memory = slices.of_memory('24GiB')
  plan = planner.plan(on_one_device, memory, compile_it=False)
  rows = largest.rows(plan, planner)
  fits = [
    planner.plan(largest.at_once(on_one_device, count), memory, compile_it=False).fits
    for count in (rows, rows + 1)
  ]
  assert rows > 1 and fits == [True, False]
  # The answer does not depend on the batch that the config has.
  larger = planner.plan(largest.at_once(on_one_device, rows + 5), memory, compile_it=False)
  assert largest.rows(larger, planner) == rows and not larger.fits
  text = sheet.text(larger, rows)
  assert f'--config.batch.size={rows} --config.optimizer.accumulate=1' in text
  assert 'on a device with 24.00 GiB' in text and 'DOES NOT FIT' in text
  assert 'Roofline' not in text and 'nan' not in text


def test_a_device_too_small_for_one_row_is_named(planner, on_one_device):
  plan = planner.plan(on_one_device, slices.of_memory('4 GB'), compile_it=False)
  assert plan.slice.chip.hbm == 4e9 and largest.rows(plan, planner) == 0
  assert 'Largest batch: none' in sheet.text(plan, 0)


@pytest.mark.parametrize('text', ['16', '0GiB', '-1GiB', '16 TiB', 'v5e'])
def test_a_memory_without_a_unit_is_refused(text):
  with pytest.raises(errors.SphinxError, match='--memory=16GiB'):
    slices.of_memory(text)


@pytest.fixture
def few_candidates(monkeypatch):
  """A search of a few of its meshes and batch sizes."""
  monkeypatch.setattr(search, '_DATA_SIZES', (1, 2))
  monkeypatch.setattr(search, '_TENSOR_SIZES', (1, 4))
  monkeypatch.setattr(search, '_BATCH_FACTORS', (1, 4))


def test_search_ranks_what_fits_first(planner, few_candidates):
  config = with_one_encoder(stage2.get_config('7b,224'))
  ranked = search.search(config, slices.find('v5e:4x8'), planner, compile_best=0)
  fitting = [plan.fits for plan in ranked]
  assert fitting == sorted(fitting, reverse=True) and 0 < sum(fitting) < len(ranked)
  speeds = [plan.roofline.tokens for plan in ranked if plan.fits]
  assert speeds == sorted(speeds, reverse=True)
  assert (
    len({plan.mesh['tensor'] for plan in ranked}) > 1
    and len({plan.config.model.remat for plan in ranked}) > 1
  )
  # Of plans that are equally fast, those that recompute less come first.
  policies = [*layers.REMAT]
  ranks = [
    (-plan.roofline.tokens, policies.index(plan.config.model.remat)) for plan in ranked if plan.fits
  ]
  assert ranks == sorted(ranks)
  assert all(plan.mesh['data'] * plan.mesh['fsdp'] * plan.mesh['tensor'] == 32 for plan in ranked)
  assert len(sheet.ranked(ranked[:5]).splitlines()) == 7


def test_every_shipped_config_has_a_row_and_an_interrupted_table_resumes(planner, tmp_path):
  runs = plan_command.shipped()
  assert len(runs) == 18
  chosen = {run: with_one_encoder(runs[run]) for run in ('stage1.py:7b,224', 'stage2.py:13b,2k')}
  rows = smallest_slices.fill(chosen, planner, tmp_path / 'rows.json', compiler=False)
  assert {(row['run'], row['kind']) for row in rows} == {
    (run, kind) for run in chosen for kind in slices.CHIPS
  }
  sizes = {
    (row['run'], row['kind']): slices.find(row['slice']).devices for row in rows if row['slice']
  }
  assert all(
    sizes['stage1.py:7b,224', kind] <= sizes['stage2.py:13b,2k', kind]
    for kind in slices.CHIPS
    if ('stage2.py:13b,2k', kind) in sizes
  )
  assert {row['remat'] for row in rows if row['kind'] == smallest_slices.COMPILED_KIND} == {'dots'}
  assert 'full' in {row['remat'] for row in rows if row['slice']}
  text = smallest_slices.markdown(rows)
  assert (
    len([line for line in text.splitlines() if line.startswith('| stage')]) == 2
    and '**' not in text.splitlines()[2]
  )

  class Never:
    def plan(self, *_, **__):
      raise AssertionError('this plan was already made')

  assert smallest_slices.fill(chosen, Never(), tmp_path / 'rows.json', compiler=False) == rows
  for other in ({'a': 1}, [1], [{'run': 1}]):
    (tmp_path / 'mine.json').write_text(json.dumps(other))
    with pytest.raises(errors.SphinxError, match="mine.json': got a JSON file of something else"):
      smallest_slices.fill(chosen, Never(), tmp_path / 'mine.json', compiler=False)
  assert json.loads((tmp_path / 'rows.json').read_text()) == rows


def test_plan_compiles_what_train_runs(tmp_path, monkeypatch):
  """The same StableHLO goes to the compiler, for the same 8 devices."""
  config = tiny(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
  texts = []

  class Compiling(Exception):
    pass

  def record(lowered, compiler_options=None):
    texts.append(lowered.as_text())
    raise Compiling

  monkeypatch.setattr(jax.stages.Lowered, 'compile', record)
  monkeypatch.setattr(run_lib, 'open_data', lambda *_: run_lib.Data(None, dict, None, '', None))
  with pytest.raises(Compiling):
    train.train(config, tmp_path)
  monkeypatch.setattr(slices, 'devices', lambda where: jax.devices())
  with pytest.raises(Compiling):
    plans.Planner(Program).plan(config, slices.find('v5e:2x4'), compile_it=True)
  assert texts[0] == texts[1] and '"tensor"=2, "expert"=1]>' in texts[0]


def test_a_step_of_a_recipe_is_planned_by_name():
  config = recipe.get_config('7b,224')
  assert run_lib.training_run(config, 'stage2').batch.size == stage2.get_config('7b,224').batch.size
  for name in (None, 'mix'):
    with pytest.raises(errors.SphinxError, match='real, stage2, synthetic'):
      run_lib.training_run(config, name)


@pytest.fixture(scope='module')
def tiny_config():
  return tiny(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})


def test_a_compiled_plan_has_the_compilers_bytes_and_collectives(planner, tiny_config, monkeypatch):
  monkeypatch.setattr(slices, 'devices', lambda _: jax.devices())
  plan = planner.plan(tiny_config, slices.find('v5e:2x4'), compile_it=True)
  compiled, text = plan.compiled, sheet.text(plan)
  assert plan.total == compiled.total > compiled.temporaries > 0
  assert 'total, compiled' in text and 'all-gather' in text and 'llm.hidden_states forward' in text


def test_a_plan_survives_compiler_text_that_cannot_be_read(planner, tiny_config, monkeypatch):
  def broken(*_):
    raise IndexError('list index out of range')

  monkeypatch.setattr(slices, 'devices', lambda _: jax.devices())
  monkeypatch.setattr(compiler_dumps, '_computations', broken)
  monkeypatch.setattr(compiler_dumps, '_VALUE', None)
  monkeypatch.setattr(compiler_dumps, 'op_names', broken)
  text = sheet.text(planner.plan(tiny_config, slices.find('v5e:2x4'), compile_it=True))
  for section in ('total, compiled', 'TFLOP', 'Roofline estimate', 'bytes estimated'):
    assert section in text
  missing = [line for line in text.splitlines() if line.startswith('Unavailable: ')]
  assert [line.split(',')[0] for line in missing] == [
    'Unavailable: collectives',
    'Unavailable: largest buffers',
  ]
  assert all('because the compiler text has another format (IndexError: ' in m for m in missing)


def test_a_compiler_without_the_dump_option_still_compiles(planner, tiny_config, monkeypatch):
  compile_lowered = jax.stages.Lowered.compile

  def refuse_options(lowered, compiler_options=None):
    options = {'xla_no_such_option': True} if compiler_options else None
    return compile_lowered(lowered, compiler_options=options)

  monkeypatch.setattr(slices, 'devices', lambda _: jax.devices())
  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse_options)
  text = sheet.text(planner.plan(tiny_config, slices.find('v5e:2x4'), compile_it=True))
  assert 'total, compiled' in text
  assert 'Unavailable: largest buffers, because the compiler dumped no buffer assignment' in text


def test_the_command_answers_without_a_compiler(tmp_path, few_candidates, capsys, monkeypatch):
  """If libtpu is not installed, and if it is not asked. Any directory will do."""
  (tmp_path / 'mine.py').write_text(
    'import ml_collections\n'
    'from tests.tiny import tiny\n'
    'def get_config():\n'
    "  step = tiny(**{'mesh.fsdp': -1}).to_dict() | dict(kind='train')\n"
    "  return ml_collections.ConfigDict(dict(steps=('kept',), kept=step))\n"
  )
  monkeypatch.chdir(tmp_path)
  step = f'--config={tmp_path}/mine.py', '--step=kept'
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, 'libtpu', None)
    code, printed, log = command.run(capsys, 'plan', *step, '--topology=v5p-16', '--compile')
  assert code == 0, log
  assert 'v5p:2x2x2 (v5p-16, 8 devices)' in printed and 'Not compiled' in printed
  assert 'libtpu is not installed: estimates from shapes and shardings only' in log
  search_flags = '--topology=v5e:2x4', '--search', '--nocompile', '--rows=3'
  code, printed, log = command.run(capsys, 'plan', *step, *search_flags)
  assert code == 0 and len(printed.splitlines()) == 5, printed + log


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=stage1:7b,224', '--topology=v5p:9x9x9'], 'v5p:4x4x4'),
    (['--config=mini', '--step=stage2'], "mesh of 'stage2': got 1 devices, expected all 64"),
    (['--topologies=some'], "'some', expected one of all"),
    (['--config=mini', '--step=stage2', '--memory=8GiB', '--search'], '--memory: got beside'),
    ([], '--config: got nothing'),
  ],
)
def test_a_wrong_question_gets_one_clear_line(arguments, words, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert words in command.error(capsys, 'plan', *arguments)
