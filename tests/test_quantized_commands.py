"""The commands that read a checkpoint in few bits, from their flags on."""

import json
import types

import numpy as np
import psutil
import pytest

import sphinx_jax
from sphinx_jax import few_bits, run
from sphinx_jax.checkpoint import store
from sphinx_jax.core import cli, trees
from tests import command
from tests.checkpoint.foreign.recorded import GOLDEN
from tests.generate import small

QUESTION = 'What is the color?'


@pytest.fixture(scope='module')
def places(tmp_path_factory):
  """A run, the same in int8, a run with adapters on the first, and examples."""
  root = tmp_path_factory.mktemp('runs')
  turns = [{'from': 'human', 'value': 'What color?'}, {'from': 'gpt', 'value': 'red'}]
  image = str(GOLDEN.parent / 'preproc' / 'f_1x1.png')
  (root / 'my.jsonl').write_text(json.dumps({'image': image, 'conversations': turns}) + '\n')
  entry = dict(source='jsonl', path='my.jsonl', task='vqa', weight=1.0)
  tasks = dict(data_dir=str(root), mixture=dict(vqa=entry), validation=dict(vqa=entry))
  base = small.save(root / 'base', name='base', image=dict(alpha='drop'), **tasks)
  few_bits.quantize(few_bits.open_full(base), root / 'held', 'int8')
  adapter = small.save_adapter(root / 'run', base)
  return dict(base=base, held=root / 'held', run=adapter, examples=root / 'my.jsonl')


def test_convert_writes_it(places, tmp_path, capsys):
  flags = f'--source={places["base"]}', f'--output={tmp_path / "new"}', '--quantize=int8'
  assert command.run(capsys, 'convert', *flags)[0] == 0
  new, held = (store.load_meta(place)['hash'] for place in (tmp_path / 'new', places['held']))
  assert new == held


@pytest.mark.parametrize('adapter', [False, True])
def test_chat_answers_as_the_full_model_loaded_in_int8(places, capsys, adapter):
  flags = [f'--adapter={places["run"]}'] if adapter else []
  options = dict(adapter=places['run']) if adapter else {}
  code, printed, _ = command.run(
    capsys,
    'chat',
    f'--checkpoint={places["held"]}',
    f'--prompt={QUESTION}',
    '--max_new_tokens=6',
    *flags,
  )
  model = sphinx_jax.load(places['base'], weights='int8', **options)
  assert code == 0 and printed == model.chat([(QUESTION, None)], max_new_tokens=6) + '\n'


def test_evaluate_scores_the_tasks_of_the_run_that_it_was_made_of(places, tmp_path, capsys):
  flags = f'--checkpoint={places["held"]}', f'--output={tmp_path}', '--tasks=vqa'
  code, printed, _ = command.run(capsys, 'evaluate', *flags)
  assert code == 0 and 'accuracy' in printed
  claimed = json.loads((tmp_path / 'run.json').read_text())
  assert claimed['weights'] == store.identity(places['held'])


@pytest.mark.parametrize('kind', ['lora', 'qlora', 'dpo'])
def test_a_run_freezes_its_codes_as_they_are(places, kind):
  config = cli.load_config(f'forkme:{places["examples"]},{places["held"]},{kind}')
  frozen = trees.flatten(run.Program(config).load(places['held']))
  held = trees.flatten(store.load_params(places['held']))
  codes = [path for path in held if path.endswith('/int8')]
  assert len(codes) == 10
  for path in codes:
    np.testing.assert_array_equal(frozen[path], held[path], err_msg=path)


def test_plan_counts_its_bytes(places, capsys):
  config = f'--config=forkme:{places["examples"]},{places["held"]}'
  code, printed, _ = command.run(capsys, 'plan', f'{config},lora', '--memory=16GiB')
  assert code == 0
  (frozen,) = [line.split() for line in printed.splitlines() if 'parameters, frozen' in line]
  held = trees.flatten(store.load_params(places['held']))
  # Beside adapters all of it is frozen, and stored in the compute dtype, here float32.
  assert float(frozen[2]) == pytest.approx(trees.nbytes(held) / 2**20, abs=0.01)
  error = command.error(capsys, 'plan', config, '--memory=16GiB')
  assert 'kernels in int8, which only adapters can be trained on' in error and ',qlora' in error


def test_mix_weights_widens_it_to_what_export_and_verify_take(
  places, tmp_path, capsys, monkeypatch
):
  held, wide, out = places['held'], tmp_path / 'wide', tmp_path / 'out'
  for place in (held, f'{held}+{places["run"]}'):
    error = command.error(capsys, 'convert', f'--source={place}', '--to=hf', f'--output={out}')
    assert 'mix_weights --inputs=DIR --output=WIDE' in error
  assert command.run(capsys, 'mix_weights', f'--inputs={held}', f'--output={wide}')[0] == 0
  flags = f'--source={wide}', '--to=hf', f'--output={out}'
  assert command.run(capsys, 'convert', *flags)[0] == 0 and (out / 'config.json').exists()

  # Values are compared whatever their dtypes: kernels of 8 bits, and in bfloat16.
  monkeypatch.setattr(psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=0))
  code, printed, _ = command.run(capsys, 'convert', f'--source={held}', f'--verify={wide}')
  assert code == 0 and 'dtype: 10 parameters in float32 there, bfloat16 here' in printed
  (row,) = (line.split() for line in printed.splitlines() if line.startswith('llm'))
  assert row[1:3] == ['12', '5'] and 0 < float(row[3]) < 2**-7
