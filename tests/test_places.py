"""Paths that users give: every entry point takes what can be used, and names what cannot."""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sphinx_jax import convert, run
from sphinx_jax.checkpoint import store, stream
from sphinx_jax.configs import benchmarks
from sphinx_jax.core import cli, errors, files, paths
from sphinx_jax.evaluation.benchmarks.benchmark import open_benchmark
from sphinx_jax.training import stopping, writer
from tests import command, release
from tests.tiny import tiny

ROOT = pathlib.Path(__file__).parent.parent
TOO_LONG = 'x' * 300

CONFIG = """
def get_config(arg=''):
  config = {!r}
  if arg:
    config['mixture']['mine']['path'] = arg
  return config
"""


@pytest.fixture(scope='module')
def inputs(tmp_path_factory) -> dict[str, str]:
  """A small input of every kind, by the name that the tables below use."""
  folder = tmp_path_factory.mktemp('inputs')
  turns = [{'from': 'human', 'value': 'Q?'}, {'from': 'gpt', 'value': 'A.'}]
  (folder / 'my.jsonl').write_text(json.dumps({'conversations': turns}) + '\n')
  entry = dict(source='jsonl', path=str(folder / 'my.jsonl'), task='dialog', weight=1.0)
  config = tiny().to_dict() | dict(
    tokenizer=str(release.TOKENIZER), mixture=dict(mine=entry), validation={}
  )
  (folder / 'tiny.py').write_text(CONFIG.format(config))
  row = json.loads((ROOT / 'tests/golden/annotations/refcoco_val.json').read_text())[0]
  (folder / 'annotations').mkdir()
  (folder / 'annotations' / 'refcoco_val.json').write_text(json.dumps([row]))
  image = folder / row['image_path']
  image.parent.mkdir(parents=True)
  Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(image)
  source = release.write_meta(folder / 'llama', release.tensors(release.llama_shapes()))
  convert.import_checkpoint(convert.open_sources([source]), folder / 'run')
  return {
    'root': str(folder),
    'jsonl': str(folder / 'my.jsonl'),
    'config': str(folder / 'tiny.py'),
    'image': str(image),
    'source': str(source),
    'run': str(folder / 'run'),
  }


@pytest.fixture(scope='module')
def answers(inputs) -> str:
  """A predictions file of the benchmark in `inputs`."""
  settings = benchmarks.get_config().refcoco_val.to_dict()
  questions = open_benchmark('refcoco_val', settings, inputs['root']).questions
  file = pathlib.Path(inputs['root'], 'answers.jsonl')
  file.write_text(
    ''.join(json.dumps({'id': question.id, 'answer': 'x'}) + '\n' for question in questions)
  )
  return str(file)


# Entry points with an output folder: all flags but the output, which '{}' stands for.
FOLDERS = {
  'train': ['train', '--config={config}', '--workdir={}'],
  'recipe': ['recipe', '--config=mini:quick', '--workdir={}'],
  'convert': ['convert', '--source={source}', '--output={}'],
  'export': ['convert', '--source={run}', '--to=hf', '--output={}'],
  'mix_weights': [
    'mix_weights',
    '--inputs={run},{run}',
    '--coefficients=0.5,0.5',
    '--output={}',
  ],
  'mix_curve': ['mix_curve', '--inputs={run},{run}', '--output={}'],
  'mix_stats': ['mix_stats', '--checkpoint={run}', '--statistics=gram', '--output={}'],
  'prepare': ['prepare', '--source=sharegpt', '--root={root}', '--output={}'],
  'evaluate tasks': ['evaluate', '--checkpoint={run}', '--output={}'],
  'evaluate benchmarks': [
    'evaluate',
    '--checkpoint={run}',
    '--benchmarks=refcoco_val',
    '--root={root}',
    '--output={}',
  ],
  'evaluate predictions': [
    'evaluate',
    '--predictions={answers}',
    '--benchmarks=refcoco_val',
    '--root={root}',
    '--output={}',
  ],
}
FILES = {
  'peek': ['peek', '--config={config}', '--output={}'],
  'plan': ['plan', '--topologies=all', '--nocompile', '--output={}'],
  'chat': ['chat', '--checkpoint={run}', '--image={image}', '--prompt=hi', '--output={}'],
  'predict': ['predict', '--checkpoint={run}', '--input={image}', '--prompt=hi', '--output={}'],
}
# An input flag, after flags that let the command get as far as this input.
INPUTS = {
  'config': ['train', '--workdir={out}', '--config={}'],
  'workdir of peek': ['peek', '--config=mini', '--output={out}', '--workdir={}'],
  'tokenizer of peek': ['peek', '--config={config}', '--output={out}', '--tokenizer={}'],
  'source': ['convert', '--output={out}', '--source={}'],
  'source of export': ['convert', '--output={out}', '--to=hf', '--source={}'],
  'tokenizer': ['convert', '--output={out}', '--source={source}', '--tokenizer={}'],
  'verify': ['convert', '--source={run}', '--verify={}'],
  'inputs': ['mix_weights', '--output={out}', '--coefficients=0.5,0.5', '--inputs={run},{}'],
  'base of mix': [
    'mix_weights',
    '--output={out}',
    '--coefficients=0.5,0.5',
    '--inputs={run},{run}',
    '--base={}',
  ],
  'statistics of mix': [
    'mix_weights',
    '--output={out}',
    '--method=fisher',
    '--inputs={run}',
    '--statistics={}',
  ],
  'checkpoint of mix_stats': [
    'mix_stats',
    '--output={out}',
    '--statistics=gram',
    '--checkpoint={}',
  ],
  'inputs of curve': ['mix_curve', '--output={out}', '--inputs={},{run}'],
  'root of prepare': ['prepare', '--source=coco', '--output={out}', '--root={}'],
  'checkpoint': ['evaluate', '--output={out}', '--checkpoint={}'],
  'root': ['evaluate', '--benchmarks=refcoco_val', '--predictions={answers}', '--root={}'],
  'predictions': ['evaluate', '--benchmarks=refcoco_val', '--root={root}', '--predictions={}'],
  'checkpoint of chat': ['chat', '--prompt=hi', '--checkpoint={}'],
  'image': ['chat', '--prompt=hi', '--checkpoint={run}', '--image={}'],
  'checkpoint of predict': [
    'predict',
    '--prompt=hi',
    '--input={image}',
    '--output={out}',
    '--checkpoint={}',
  ],
}


def flags_of(row, place, inputs, **more):
  return [flag.format(place, **inputs, **more) for flag in row]


@pytest.mark.parametrize('entry_point', FOLDERS)
def test_a_folder_that_cannot_be_written_is_named_before_the_work(
  entry_point, inputs, answers, tmp_path, capsys
):
  (tmp_path / 'file').write_text('mine')
  (tmp_path / 'link').symlink_to(tmp_path / 'gone' / 'away')
  for place, words in {
    tmp_path / 'file': 'file',
    tmp_path / 'file' / 'run': 'file',
    tmp_path / 'link': 'link',
    f'/proc/{os.getpid()}x': '/proc/',
    tmp_path / TOO_LONG: TOO_LONG,
    '~nobody_of_this_name/run': '~nobody_of_this_name',
    '': 'empty',
  }.items():
    given = flags_of(FOLDERS[entry_point], place, inputs, answers=answers)
    line = command.error(capsys, *given)
    assert words in line, (place, line)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'link']
  assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('entry_point', FILES)
def test_a_file_that_cannot_be_written_is_named_before_the_work(
  entry_point, inputs, tmp_path, capsys
):
  (tmp_path / 'folder.png').mkdir()
  (tmp_path / 'file').write_text('mine')
  os.mkfifo(tmp_path / 'pipe')
  may_be_empty = entry_point == 'chat'  # '' asks for no file.
  for place, words in {
    tmp_path / 'folder.png': 'folder.png',
    tmp_path / 'file' / 'x.png': 'file',
    tmp_path / 'none' / 'x.png': 'none',
    tmp_path / 'pipe': 'a named pipe',
    f'/proc/{os.getpid()}x.png': '/proc/',
    tmp_path / f'{TOO_LONG}.png': TOO_LONG,
    '~nobody_of_this_name/x.png': '~nobody_of_this_name',
    **({} if may_be_empty else {'': 'empty'}),
  }.items():
    line = command.error(capsys, *flags_of(FILES[entry_point], place, inputs))
    assert words in line, (place, line)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder.png', 'pipe']


@pytest.mark.parametrize('flag', INPUTS)
def test_an_input_that_is_not_there_or_of_another_kind_is_named(
  flag, inputs, answers, tmp_path, capsys
):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').write_bytes(b'\xff\x00 no such format')
  (tmp_path / 'link').symlink_to(tmp_path / 'gone')
  for place, words in {
    tmp_path / 'none': 'none',
    tmp_path / 'none' / 'of' / 'it': 'none',
    tmp_path / 'folder': 'folder',
    tmp_path / 'file': 'file',
    tmp_path / 'file' / 'x': 'file',
    tmp_path / 'link': 'link',
    tmp_path / TOO_LONG: TOO_LONG,
    '/dev/full': '/dev/full' if flag == 'config' else 'a device',
    '~nobody_of_this_name/x': '~nobody_of_this_name',
    '': 'empty',
  }.items():
    out = tmp_path / 'out'
    line = command.error(capsys, *flags_of(INPUTS[flag], place, inputs, answers=answers, out=out))
    assert words in line, (place, line)
    assert not out.exists() or flag == 'config', place


@contextlib.contextmanager
def full_disk(size: int):
  """No file can grow above `size` bytes, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
  'entry_point', ['convert', 'export', 'mix_weights', 'prepare', 'evaluate predictions']
)
@pytest.mark.parametrize('size', [0, 100, 1500])
def test_a_full_disk_is_one_line_and_the_next_call_works(
  entry_point, size, inputs, answers, tmp_path, capsys
):
  if entry_point == 'prepare':
    dialogs = [{'id': str(i), 'conversations': [{'from': 'human', 'value': 'Q?'}, {'from': 'gpt',
      'value': os.urandom(2000).hex()}]} for i in range(3)]  # fmt: skip
    pathlib.Path(inputs['root'], 'sharegpt.json').write_text(json.dumps(dialogs))
  given = flags_of(FOLDERS[entry_point], tmp_path / 'out', inputs, answers=answers)
  with full_disk(size):
    line = command.error(capsys, *given)
  assert str(tmp_path / 'out') in line and 'too large' in line.lower(), line
  assert store.latest(tmp_path / 'out') is None
  code, _, stderr = command.run(capsys, *given)
  assert code == 0, stderr


@pytest.mark.parametrize('name', [name for name in cli.shipped_configs()])
def test_a_shipped_config_file_works_from_another_folder(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = cli.load_config(f'{ROOT}/configs/{name}.py' + (':my.jsonl' if name == 'forkme' else ''))
  assert config.is_locked
  if name == 'forkme':
    assert config.mixture.mine.path == str(tmp_path / 'my.jsonl')


def test_an_empty_prompt_is_refused_but_no_drawing_may_be_asked_for(inputs, capsys):
  line = command.error(capsys, 'chat', f'--checkpoint={inputs["run"]}', '--prompt=')
  assert line.startswith('error: --prompt: got an empty text') and 'shell variable' in line
  line = command.error(capsys, 'chat', '--checkpoint=nowhere', '--prompt=hi', '--output=')
  assert 'nowhere' in line


def test_names_with_spaces_and_other_characters_are_names(inputs, answers, tmp_path, capsys):
  odd = tmp_path / 'a [1] {x} #\u00fc %20 \u65e5\u672c; $HOME \'"'
  shutil.copytree(inputs['source'], odd / 'llama')
  names = inputs | {'source': str(odd / 'llama')}
  for entry_point, output in {
    'convert': 'run',
    'export': 'hf',
    'mix_weights': 'mix',
    'evaluate predictions': 'scores',
  }.items():
    given = flags_of(FOLDERS[entry_point], odd / output, names, answers=answers)
    code, _, stderr = command.run(capsys, *given)
    assert code == 0 and (odd / output).is_dir(), stderr
    names['run'] = str(odd / 'run')
  assert sorted(path.name for path in odd.iterdir()) == ['hf', 'llama', 'mix', 'run', 'scores']


def uncompiled(program):
  """A step that only counts, in place of the compiled update."""
  names = 'loss weight grad_norm learning_rate examples useful labelled positions'.split()
  metrics = dict.fromkeys(names, 1.0) | {'task_loss': [1.0], 'task_weight': [1.0]}
  return lambda state, batch: (dataclasses.replace(state, step=state.step + 1), metrics)


@pytest.fixture
def stopped_run(inputs, tmp_path, monkeypatch, capsys):
  """Flags of a run in the home folder, given with `~`, which was stopped after its first step."""
  home = tmp_path / 'home'
  home.mkdir()
  for name in ('jsonl', 'config'):
    shutil.copy(inputs[name], home)
  shutil.copy(release.TOKENIZER, home / 'tokenizer.model')
  (tmp_path / 'elsewhere').mkdir()
  monkeypatch.chdir(tmp_path / 'elsewhere')
  monkeypatch.setenv('HOME', str(home))
  flags = ['train', '--config=~/tiny.py:~/my.jsonl', '--config.tokenizer=~/tokenizer.model']
  flags += ['--workdir=~/run', '--config.model.llm.vocab=512', '--config.batch.seq_len=64']
  flags += ['--config.steps=3', '--config.batch.window=8', '--config.model.encoders={}']
  with monkeypatch.context() as patch:
    patch.setattr(stopping.Stopping, 'after', lambda self, step, last: signal.SIGTERM)
    patch.setattr(run.Program, 'compile', uncompiled)
    code, _, stderr = command.run(capsys, *flags)
  assert code == 128 + signal.SIGTERM, stderr
  return flags


def test_a_run_of_the_home_folder_resumes_with_its_own_data_only(
  stopped_run, tmp_path, monkeypatch, capsys
):
  home = tmp_path / 'home'
  assert store.latest('~/run') == 1 and store.latest(home / 'run') == 1
  assert not any((tmp_path / 'elsewhere').iterdir()) and not (home / 'run' / paths.LOCK).exists()

  data, tokenizer = home / 'my.jsonl', home / 'tokenizer.model'
  before, pieces = data.read_text(), tokenizer.read_bytes()
  for file, change, words in (
    (data, before.replace('A.', 'B.').encode(), 'my.jsonl'),  # Of the same length.
    (data, before.encode() * 2, f'({len(before)} bytes'),
    (tokenizer, pieces + b'\xc2\x0c\x00', 'the tokenizer'),
  ):
    file.write_bytes(change)
    line = command.error(capsys, *stopped_run)
    assert words in line and 'changed since the run began' in line, line
    data.write_text(before)
    tokenizer.write_bytes(pieces)

  with paths.locked(home / 'run'):
    line = command.error(capsys, *stopped_run)
    assert 'another process at work in it (process ' in line
  # A checkpoint of an older version has no record of the files.
  load_meta = store.load_meta
  monkeypatch.setattr(
    store,
    'load_meta',
    lambda folder: {k: v for k, v in load_meta(folder).items() if k != 'data_files'},
  )
  data.write_text(before * 2)

  def compile_program(self):
    raise errors.SphinxError('it went on to compile')

  monkeypatch.setattr(run.Program, 'compile', compile_program)
  assert 'it went on to compile' in command.error(capsys, *stopped_run)


def test_two_interrupts_of_a_conversion_leave_nothing_that_looks_finished(
  inputs, tmp_path, monkeypatch, capsys
):
  def interrupt(*_):
    raise KeyboardInterrupt

  given = flags_of(FOLDERS['convert'], tmp_path / 'out', inputs)
  with monkeypatch.context() as patch:
    patch.setattr(stream.Writer, 'write', interrupt)
    calls = iter((lambda folder: None, interrupt))
    patch.setattr(stream, '_remove', lambda folder: next(calls)(folder))
    code, _, stderr = command.run(capsys, *given)
  assert code == 130 and 'Traceback' not in stderr, stderr
  partial = tmp_path / 'out' / 'checkpoints' / 'partial'
  assert partial.is_dir() and store.latest(tmp_path / 'out') is None
  assert 'error: ' in command.error(capsys, 'chat', '--prompt=hi', f'--checkpoint={partial}')
  assert command.run(capsys, *given)[0] == 0
  assert [path.name for path in (tmp_path / 'out' / 'checkpoints').iterdir()] == ['0']


def test_a_lock_ends_with_its_process(tmp_path):
  code = (
    'import sys, time; from sphinx_jax.core import paths\n'
    'with paths.locked(sys.argv[1]):\n  print("held", flush=True)\n  time.sleep(60)'
  )
  arguments = [sys.executable, '-c', code, str(tmp_path / 'out')]
  with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(errors.SphinxError, match=f'process {process.pid} on'):
      with paths.locked(tmp_path / 'out'):
        pass
    process.kill()
    process.wait()
  assert (tmp_path / 'out' / paths.LOCK).exists() and paths.is_empty(tmp_path / 'out')
  with paths.locked(tmp_path / 'out'):
    pass
  assert not any((tmp_path / 'out').iterdir())


def test_a_folder_that_vanishes_while_it_is_written_is_named(tmp_path):
  metrics = writer.Writer(tmp_path / 'run', 0, enabled=False)
  metrics._enabled, metrics._file = True, tmp_path / 'run' / writer.FILE
  with pytest.raises(errors.SphinxError, match="run': got No such file or directory"):
    metrics.write(1, {'loss': 1.0})
  (tmp_path / 'other' / writer.FILE).mkdir(parents=True)
  with pytest.raises(errors.SphinxError, match='Is a directory'):
    writer.Writer(tmp_path / 'other', 0)
  with paths.locked(tmp_path / 'out'):
    shutil.rmtree(tmp_path / 'out')
  with pytest.raises(errors.SphinxError, match='No such file'):
    files.write_json(tmp_path / 'out' / 'a.json', 1)


@pytest.mark.parametrize('name', ['config.json', 'run.json'])
def test_a_damaged_record_of_a_folder_is_named(name, inputs, answers, tmp_path, capsys):
  (tmp_path / name).write_text('{"a"')
  entry_point = 'train' if name == 'config.json' else 'evaluate predictions'
  line = command.error(capsys, *flags_of(FOLDERS[entry_point], tmp_path, inputs, answers=answers))
  assert str(tmp_path / name) in line and 'no readable JSON' in line
