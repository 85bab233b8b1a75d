"""The commands that take, make or refuse adapters, from their flags on."""

import json
import types

import psutil
import pytest

from sphinx_jax.checkpoint import adapter_runs, store
from tests import command
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA
from tests.generate import small


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A checkpoint, and two runs with adapters on it."""
  root = tmp_path_factory.mktemp('runs')
  base = small.save(root / 'base')
  return base, *(small.save_adapter(root / f'run{seed}', base, seed) for seed in range(2))


def test_adapters_are_mixed_into_one_and_the_errors_are_printed(folders, tmp_path, capsys):
  _, one, other = folders
  flags = f'--inputs={one},{other}', '--coefficients=0.5,0.5', f'--output={tmp_path / "mix"}'
  code, printed, _ = command.run(capsys, 'mix_weights', *flags, '--rank=4')
  lines = [line.split() for line in printed.splitlines()]
  assert code == 0 and lines[0] == ['layer', 'rank', 'relative', 'error']
  assert ['llm/layers/attention/wq', '4'] in [line[:2] for line in lines]
  assert lines[-1][0] == 'total' and 1 < float(lines[-1][1].rstrip('%')) < 99
  assert adapter_runs.is_adapter(tmp_path / 'mix')
  error = command.error(capsys, 'mix_weights', *flags)
  assert 'a run that holds adapters alone' in error and '--rank=N' in error
  error = command.error(capsys, 'mix_weights', *flags, '--rank=4', '--method=slerp')
  assert '--method: got slerp with --rank' in error


def test_an_adapter_of_peft_answers_like_the_run_that_it_is_of(
  folders, tmp_path, capsys, monkeypatch
):
  base, one, _ = folders
  flags = f'--source={one}', '--to=peft', f'--output={tmp_path / "peft"}'
  assert command.run(capsys, 'convert', *flags)[0] == 0
  ask = f'--checkpoint={base}', '--prompt=What is the color?', '--max_new_tokens=6'
  answers = [
    command.run(capsys, 'chat', *ask, f'--adapter={adapter}')[1]
    for adapter in (one, tmp_path / 'peft')
  ]
  assert answers[0] and answers[0] == answers[1]
  monkeypatch.setattr(psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=0))
  places = f'--source={base}+{one}', f'--verify={base}+{tmp_path / "peft"}'
  code, printed, _ = command.run(capsys, 'convert', *places)
  assert code == 0
  (row,) = (line.split() for line in printed.splitlines() if line.startswith('llm'))
  assert float(row[-1]) < 1e-5
  error = command.error(capsys, 'convert', *flags, '--shards=2')
  assert '--shards: got 2, expected 1 with --to=peft' in error


_ADAPTERS = ['--config=forkme:{out}.jsonl,{base},lora']


@pytest.mark.parametrize(
  'module, flags',
  [
    ('mix_curve', ['--inputs={run},{run}', '--output={out}']),
    ('mix_curve', ['--inputs={base},{base}+{run}', '--output={out}']),
    ('peek', ['--config=forkme:{out}.jsonl,{run}']),
    ('plan', ['--config=forkme:{out}.jsonl,{base}+{run},lora']),
    ('convert', ['--source={run}', '--to=official', '--output={out}']),
    ('convert', ['--source={base}', '--verify={run}']),
    ('train', [*_ADAPTERS, '--config.init_from={base}+{run}', '--workdir={out}']),
    ('train', [*_ADAPTERS, '--config.init_from={run}', '--workdir={out}']),
    ('peek', [*_ADAPTERS, '--config.init_from={base}+{run}']),
    ('plan', [*_ADAPTERS, '--config.init_from={base}+{run}']),
  ],
)
def test_a_command_that_needs_all_weights_asks_for_a_merge(
  folders, tmp_path, capsys, module, flags
):
  places = dict(base=folders[0], run=folders[1], out=tmp_path / 'out')
  error = command.error(capsys, module, *(flag.format(**places) for flag in flags))
  assert 'merge it first: python -m sphinx_jax.mix_weights --inputs=BASE+ADAPTER' in error
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'module, flags',
  [
    ('convert', ['--source={base}+{run}', '--to=peft']),
    ('mix_weights', ['--inputs={base}+{run},{run}', '--coefficients=0.5,0.5', '--rank=4']),
  ],
)
def test_a_command_that_needs_an_adapter_alone_asks_for_it(
  folders, tmp_path, capsys, module, flags
):
  places = dict(base=folders[0], run=folders[1])
  given = [flag.format(**places) for flag in flags]
  error = command.error(capsys, module, *given, f'--output={tmp_path / "out"}')
  assert 'expected a run that holds adapters alone; give' in error


def test_held_out_tasks_are_those_of_the_checkpoint_with_the_adapter(tmp_path, capsys):
  turns = [{'from': 'human', 'value': 'What color?'}, {'from': 'gpt', 'value': 'red'}]
  image = str(GOLDEN.parent / 'preproc' / 'f_1x1.png')
  line = json.dumps({'image': image, 'conversations': turns})
  (tmp_path / 'my.jsonl').write_text(line + '\n')
  entry = dict(source='jsonl', path='my.jsonl', task='vqa', weight=1.0)
  tasks = dict(data_dir=str(tmp_path), mixture=dict(vqa=entry), validation=dict(vqa=entry))
  base = small.save(tmp_path / 'base', name='base', image=dict(alpha='drop'), **tasks)
  adapter, output = small.save_adapter(tmp_path / 'run', base), tmp_path / 'out'
  flags = f'--checkpoint={base}', f'--adapter={adapter}', f'--output={output}', '--tasks=vqa'
  code, printed, _ = command.run(capsys, 'evaluate', *flags)
  assert code == 0 and 'accuracy' in printed
  run = json.loads((output / 'run.json').read_text())
  assert run['run'] == f'{base} at step 7 with adapter {adapter} at step 3'
  assert run['weights'] == {'weights': store.identity(base), 'adapter': store.identity(adapter)}


def test_an_adapter_that_is_not_there_is_named(folders, capsys):
  for flags in (
    [f'--checkpoint={folders[0]}+none'],
    [f'--checkpoint={folders[0]}', '--adapter=none'],
  ):
    assert "adapter 'none': got no" in command.error(capsys, 'chat', *flags, '--prompt=x')


def test_a_run_does_not_begin_with_a_folder_of_another_library(tmp_path, capsys):
  (tmp_path / 'my.jsonl').write_text(json.dumps({}))
  config = f'--config=forkme:{tmp_path}/my.jsonl,{GOLDEN / LLAMA},lora'
  workdir = f'--workdir={tmp_path / "run"}'
  error = command.error(capsys, 'train', config, workdir)
  assert 'import it first (python -m sphinx_jax.convert)' in error
  adapter = GOLDEN.parent / 'adapters' / 'lora'
  config = f'--config=forkme:{tmp_path}/my.jsonl,{GOLDEN / LLAMA}+{adapter},lora'
  error = command.error(capsys, 'train', config, workdir)
  assert 'python -m sphinx_jax.convert --source=BASE+ADAPTER' in error
