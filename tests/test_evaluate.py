"""`python -m sphinx_jax.evaluate` from end to end, with a tiny model and small dataset files."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.generate import load
from sphinx_jax.serving import engine as engines
from tests import command, release, xla
from tests.generate import small
from tests.serving import small as small_server

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / 'tests' / 'golden' / 'annotations'
COUNTS = {'refcoco_val': 6, 'MME_benchmark': 8}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """The first rows of official annotation files with small images; the last image is truncated."""
  folder = tmp_path_factory.mktemp('root')
  (folder / 'annotations').mkdir()
  rng = np.random.default_rng(0)
  for name, count in COUNTS.items():
    rows = json.loads((GOLDEN / f'{name}.json').read_text())[:count]
    (folder / 'annotations' / f'{name}.json').write_text(json.dumps(rows))
    for row in rows:
      image = folder / row['image_path']
      image.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(image)
  image.write_bytes(image.read_bytes()[:50])
  questions = [{'question_id': 7 + i, 'image_id': i, 'question': 'Is it?'} for i in range(2)]
  (folder / 'data' / 'vqav2').mkdir()
  hidden = folder / 'data' / 'vqav2' / 'v2_OpenEnded_mscoco_test-dev2015_questions.json'
  hidden.write_text(json.dumps({'questions': questions}))
  (folder / 'data' / 'coco' / 'test2015').mkdir(parents=True)
  for i in range(2):
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(
      folder / 'data' / 'coco' / 'test2015' / f'COCO_test2015_{i:012d}.jpg'
    )
  return folder


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  config = ml_collections.ConfigDict({'model': small.config(max_length=512).to_dict()})
  bundle = Bundle(config, small.tokenizer().model_bytes, {'system': 'Be brief.'})
  with store.Store(folder) as saver:
    saver.save(7, small.params(), None, bundle.to_meta())
  return folder


def start(*flags, **environment):
  return subprocess.Popen(
    [sys.executable, '-m', 'sphinx_jax.evaluate', *map(str, flags)],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env=xla.environment() | environment,
  )


def finish(process):
  try:
    printed = process.communicate(timeout=300)[0]
  finally:
    process.kill()
  assert process.returncode == 0, printed
  return printed


NAMES = '--benchmarks=refcoco_val,mme,vqav2_testdev'


@pytest.fixture(scope='module')
def scored(root, checkpoint, tmp_path_factory):
  """Returns the output directory and the printed text of one process."""
  output = tmp_path_factory.mktemp('out')
  return output, finish(
    start(f'--checkpoint={checkpoint}', NAMES, f'--root={root}', f'--output={output}')
  )


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_answers_scores_report_and_the_file_to_submit_are_written(scored):
  output, printed = scored
  assert {file.name for file in output.iterdir()} == {
    'run.json',
    'results.json',
    'report.html',
    'cases',
    'refcoco_val.jsonl',
    'mme.jsonl',
    'vqav2_testdev.jsonl',
    'vqav2_testdev_submission.json',
  }
  assert [len(lines(output / f'{name}.jsonl')) for name in ('refcoco_val', 'mme')] == list(
    COUNTS.values()
  )
  results = json.loads((output / 'results.json').read_text())
  assert {name: (result['questions'], result['skipped']) for name, result in results.items()} == {
    'refcoco_val': (6, 0),
    'mme': (8, 2),
    'vqav2_testdev': (2, 0),
  }
  assert lines(output / 'mme.jsonl')[-1]['skipped'] == 'unreadable image'
  for line in (
    r'refcoco_val +miou0\.5 +\d+\.\d\d +91\.1 +6 +0\n',
    r'mme +perception +\d+\.\d +1470\.6 +8 +2\n',
  ):
    assert re.search(line, printed)
  submitted = json.loads((output / 'vqav2_testdev_submission.json').read_text())
  assert [entry['question_id'] for entry in submitted] == [7, 8]
  page = (output / 'report.html').read_text()
  assert all(f'id="cases-{name}"' in page for name in results) and 'hidden' in page


def test_two_processes_write_the_files_of_one(scored, root, checkpoint, tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  both = [
    start(
      f'--checkpoint={checkpoint}',
      NAMES,
      f'--root={root}',
      f'--output={tmp_path}',
      '--mesh=serving',
      JAX_COORDINATOR_ADDRESS=f'127.0.0.1:{port}',
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(number),
      SPHINX_JAX_COMMIT='a',
      XLA_FLAGS=xla.flags(devices=2),
    )
    for number in range(2)
  ]
  printed = [finish(process) for process in both]
  assert 'refcoco_val' in printed[0] and 'miou0.5' not in printed[1]
  for file in scored[0].glob('*.json*'):
    if file.name != 'run.json':
      assert (tmp_path / file.name).read_text() == file.read_text(), file.name


def printed_by(capsys, *flags) -> str:
  """What evaluate prints, in this process, which has imported all that it needs."""
  code, printed, log = command.run(capsys, 'evaluate', *map(str, flags))
  assert code == 0, log
  return printed


def test_a_file_of_answers_is_scored_without_a_checkpoint(scored, root, tmp_path, capsys):
  answers = [
    {'id': line['id'], 'answer': line['gt_answers']} for line in lines(scored[0] / 'mme.jsonl')
  ]
  (tmp_path / 'mine.jsonl').write_text(''.join(json.dumps(answer) + '\n' for answer in answers))
  printed = printed_by(
    capsys,
    f'--predictions={tmp_path / "mine.jsonl"}',
    '--benchmarks=mme',
    f'--root={root}',
    '--official_scoring',
    f'--output={tmp_path / "out"}',
  )
  assert re.search(r'mme +perception +200\.0', printed)
  assert json.loads((tmp_path / 'out' / 'results.json').read_text())['mme']['official']
  for answer in answers:
    answer['answer'] += ' \ud83d'  # Half of an emoji, which max_new_tokens has cut in two.
  (tmp_path / 'mine.jsonl').write_text(''.join(json.dumps(answer) + '\n' for answer in answers))
  printed = printed_by(
    capsys,
    f'--predictions={tmp_path / "mine.jsonl"}',
    '--benchmarks=refcoco_val',
    f'--root={root}',
    '--limit=4',
    f'--output={tmp_path / "half"}',
  )
  assert re.search(r'refcoco_val +miou0\.5 +0\.00 +91\.1 +4 +0', printed)
  assert ' \ufffd' in (tmp_path / 'half' / 'report.html').read_text()


def test_an_official_folder_answers_too(root, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(
    release.ENCODERS, 'convnext', dict(depths=(1, 1, 1, 1), widths=(4, 4, 8, 8))
  )  # An image has 259 tokens.
  official = release.write_official(
    tmp_path / 'official', release.tensors(release.official_shapes())
  )
  printed_by(
    capsys,
    f'--checkpoint={official}',
    '--benchmarks=mme',
    f'--root={root}',
    f'--output={tmp_path / "out"}',
    '--limit=2',
  )
  assert len(lines(tmp_path / 'out' / 'mme.jsonl')) == 2


def test_an_adapter_answers_and_another_one_is_not_taken_for_it(root, checkpoint, tmp_path, capsys):
  adapter = small.save_adapter(tmp_path / 'adapter', checkpoint)
  flags = [f'--checkpoint={checkpoint}', '--benchmarks=mme', f'--root={root}', '--limit=2']
  flags += [f'--output={tmp_path / "out"}', '--adapter={adapter}']
  ask = lambda adapter: [flag.format(adapter=adapter) for flag in flags]
  assert command.run(capsys, 'evaluate', *ask(adapter))[0] == 0
  assert len(lines(tmp_path / 'out' / 'mme.jsonl')) == 2
  run = json.loads((tmp_path / 'out' / 'run.json').read_text())
  assert run['checkpoint'] == f'{checkpoint} at step 7 with adapter {adapter} at step 3'
  shutil.rmtree(adapter)
  small.save_adapter(adapter, checkpoint, seed=1)
  assert 'answers of another run' in command.error(capsys, 'evaluate', *ask(adapter))


@pytest.fixture(scope='module')
def served(checkpoint):
  """The address of a server of the checkpoint, and its engine."""
  engine = engines.Engine(load.load_model(checkpoint), rows=4)
  engine.start()
  with small_server.serving(engine, fingerprint='f', keys=['secret']) as port:
    yield f'http://127.0.0.1:{port}', engine
  engine.stop()


def test_a_server_gives_the_answers_of_its_checkpoint(
  scored, root, served, tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')
  url, engine = served
  printed_by(capsys, f'--server={url}', NAMES, f'--root={root}', f'--output={tmp_path / "out"}')
  assert engine.generated  # The server did it.
  for name in ('refcoco_val', 'mme', 'vqav2_testdev'):
    ours, asked = (lines(folder / f'{name}.jsonl') for folder in (scored[0], tmp_path / 'out'))
    assert ours == asked
    assert any(line['answer'] for line in asked)
  results = [json.loads((f / 'results.json').read_text()) for f in (scored[0], tmp_path / 'out')]
  assert results[0] == results[1]
  run = json.loads((tmp_path / 'out' / 'run.json').read_text())
  assert (run['checkpoint'], run['weights']) == ('server of tiny', 'f')


def test_what_a_server_refuses_is_counted_and_what_it_lacks_is_named(
  served, root, tmp_path, capsys, monkeypatch
):
  url, engine = served
  flags = ['--benchmarks=refcoco_val', f'--root={root}', f'--output={tmp_path / "out"}']
  ask = lambda *more: command.error(capsys, 'evaluate', *flags, *more)
  assert 'got no valid API key' in ask(f'--server={url}').replace(': request:', '')
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')
  assert 'model of server' in ask(f'--server={url}', '--model=tinny')
  assert 'got Connection error' in ask('--server=http://127.0.0.1:9/v1')
  assert 'expected http://HOST:PORT/v1' in ask('--server=localhost')
  assert '--server and --benchmarks' in ask(f'--server={url}', '--checkpoint=x')
  # Every question is too long for this server, so the run stops with its reason.
  monkeypatch.setattr(engine.batch, 'length', 8)
  error = ask(f'--server={url}')
  assert 'bad among the first 6 examples' in error and 'refused by the server' in error


@pytest.mark.parametrize(
  'flags, message',
  [
    (
      ['--benchmarks=mm', '--checkpoint=x', '--root={root}', '--output={out}'],
      "did you mean 'mme'",
    ),
    (['--benchmarks=mme', '--root={root}'], '--benchmarks without --checkpoint and --output'),
    (
      ['--benchmarks=gqa_testdev', '--checkpoint={run}', '--root={root}', '--output={out}'],
      'gqa_testdev_balanced.json',
    ),
    (['--benchmarks=mme', '--checkpoint={out}', '--root={root}', '--output={out}'], 'checkpoint'),
  ],
)
def test_errors_are_reported_before_any_question_is_answered(
  flags, message, root, checkpoint, tmp_path, capsys
):
  places = dict(root=root, out=tmp_path / 'out', run=checkpoint)
  assert message in command.error(capsys, 'evaluate', *(flag.format(**places) for flag in flags))
