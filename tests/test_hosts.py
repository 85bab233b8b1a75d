"""Several processes as one run: real processes on loopback with a few CPU devices, tiny models."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.checkpoint import statistics, store, stream
from sphinx_jax.core import errors
from sphinx_jax.parallel import hosts
from sphinx_jax.training import writer
from tests import xla

ROOT = pathlib.Path(__file__).parent.parent
HEARTBEAT_TIMEOUT = 10  # Seconds. With a shorter one, a busy machine looks like a dead process.
ABORTED = -signal.SIGABRT  # By jax; a shell shows it as exit code 134.
CONFIG = """
from ml_collections import ConfigDict

def get_config():
  entry = dict(source='jsonl', path='my.jsonl', root='', task='dialog', weight=1.0, too_long='skip')
  return ConfigDict(dict(
    name='tiny',
    seed=0,
    model=dict(
      image_size=16, grid=1, pool=1, half_round=False, dtype='float32', remat='none',
      scan_unroll=1, attention='auto',
      encoders=dict(clip=dict(view=16, patch=8, width=8, layers=1, heads=2)),
      llm=dict(
        name='llama', vocab=512, width=16, layers=1, heads=4, kv_heads=4, multiple_of=8)),
    tokenizer='{root}/tests/golden/tokenizer.model',
    dialog=dict(system=''),
    data_dir='{data}',
    mixture=dict(mine=entry),
    sampling=dict(by='examples', temperature=1.0, stages=()),
    max_skipped=0.5,
    image=dict(alpha='drop'),
    batch=dict(size=4, seq_len=64, images=2, window=16),
    loss_weighting='token',
    loss_chunk=0,
    trainable=(('.*', 'train'),),
    optimizer=dict(
      name='adamw', lr=1e-2, warmup=2, decay_to=0.1, betas=(0.9, 0.95), weight_decay=0.1,
      clip=1.0, accumulate=1, moment_dtype='float32'),
    steps=8,
    log_every=1,
    profile=(),
    wandb='',
    cache_features='',
    eval_every=100,
    eval_batches=1,
    checkpoint=dict(every=100, keep=3, keep_every=0),
    mesh=dict(data=2, fsdp=2, tensor=1),
    init_from='',
    validation=dict())).lock()
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """A folder with a config and data. Compiled programs are cached there."""
  folder = tmp_path_factory.mktemp('hosts')
  with (folder / 'my.jsonl').open('w') as file:
    for i in range(60):
      Image.fromarray(np.full((16, 16, 3), 4 * i, np.uint8)).save(folder / f'{i}.png')
      turns = [
        {'from': 'human', 'value': 'Which?'},
        {'from': 'gpt', 'value': f'number {i}' + ' and so on' * (i % 3)},
      ]
      file.write(json.dumps({'image': f'{i}.png', 'conversations': turns}) + '\n')
  config = CONFIG.replace('{root}', str(ROOT)).replace('{data}', str(folder))
  (folder / 'config.py').write_text(config)
  return folder


# `python -m sphinx_jax.train` with a hook before each update. It writes hashes of the rows, and
# sends SIGTERM to its own process at the update and on the processes of SIGTERM_AT.
HOOKED_TRAIN = """
import os, runpy, signal, sys, xxhash
from sphinx_jax.parallel import hosts, placement
put, update = placement.put, 0
stop_update, stop_processes = os.environ.get('SIGTERM_AT', '0:').split(':')
file = open(os.environ['NOTES'] + os.environ.get('JAX_PROCESS_ID', '0'), 'a', buffering=1)

def noted_put(batch, sharding):
  global update
  update += 1
  for row, tokens, images in zip(hosts.local_rows(sharding, 4), batch['tokens'], batch['images']):
    file.write(f'{update} {row} {xxhash.xxh3_64_hexdigest(tokens.tobytes() + images.tobytes())}\\n')
  if update == int(stop_update) and str(hosts.process_index()) in stop_processes:
    os.kill(os.getpid(), signal.SIGTERM)
  return put(batch, sharding)

placement.put = noted_put
runpy.run_module('sphinx_jax.train', run_name='__main__')
"""
# A session without a model. Each process does what its word in the arguments says.
SESSION = """
import sys, time
from sphinx_jax.core import errors, progress
from sphinx_jax.parallel import hosts
progress.setup_logging()
with hosts.session({'facts': 1}):
  action = sys.argv[1:][hosts.process_index()]
  if 'collective' in sys.argv:  # All take part until one ends.
    import jax, jax.numpy as jnp
    from jax.experimental import multihost_utils
    multihost_utils.process_allgather(jnp.ones(2))
  print('joined', flush=True)
  hosts.all_gather(None)
  if action == 'fail':
    raise errors.make('data', 'a', 'b', 'c')
  if action == 'gather':
    hosts.all_gather(None)
  while action == 'collective':
    multihost_utils.process_allgather(jnp.ones(2))
  time.sleep(300)
"""


class Run:
  """Processes of `python -m sphinx_jax.train`, or of other code, with up to four devices in all.

  All of them are killed when the context ends.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    workdir: pathlib.Path,
    processes: int,
    *flags: str,
    code: tuple[str, ...] = (),
    flags_of: dict[int, tuple[str, ...]] | None = None,
    commits: str = 'aaaa',
    **environment: str,
  ):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    began = time.monotonic_ns()
    self.files = [workdir.parent / f'{workdir.name}.{i}.{began}' for i in range(processes)]
    common = {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': xla.flags(devices=4 // processes),
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'SPHINX_JAX_HEARTBEAT_TIMEOUT': str(HEARTBEAT_TIMEOUT),
      'PYTHONPATH': str(ROOT),
      'NOTES': f'{workdir}.notes.',
    }
    self.processes = []
    for index, file in enumerate(self.files):
      own = {'SPHINX_JAX_COMMIT': commits[index]}
      if processes > 1:
        own |= {
          'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
          'JAX_NUM_PROCESSES': str(processes),
          'JAX_PROCESS_ID': str(index),
        }
      own_flags = (flags_of or {}).get(index, ())
      train = (f'--config={folder}/config.py', f'--workdir={workdir}', *flags, *own_flags)
      self.processes.append(
        subprocess.Popen(
          [sys.executable, '-c', *(code or (HOOKED_TRAIN, *train))],
          env=os.environ | common | own | environment,
          stdout=file.open('w'),
          stderr=subprocess.STDOUT,
          cwd=folder,
        )
      )

  def exit_codes(self) -> list[int]:
    """Waits for all processes."""
    return [process.wait(900) for process in self.processes]

  def wait_until_joined(self) -> None:
    deadline = time.monotonic() + 120
    while not all('joined' in self.output(index) for index in range(len(self.processes))):
      assert time.monotonic() < deadline, self.output(0)
      assert all(process.poll() is None for process in self.processes), self.output(0)
      time.sleep(0.1)

  def output(self, index: int) -> str:
    return self.files[index].read_text()

  def last_line(self, index: int) -> str:
    return self.output(index).splitlines()[-1]

  def __enter__(self) -> 'Run':
    return self

  def __exit__(self, *_) -> None:
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        process.kill()
      process.wait()


def metrics(workdir: pathlib.Path) -> list[dict]:
  return [
    {name: value for name, value in line.items() if name not in writer.MACHINE_METRICS}
    for line in writer.read(workdir)
  ]


def examples(workdir: pathlib.Path, first_step: int) -> dict[tuple[int, int], str]:
  """(step, row) -> hash of what a start trained on. Several processes may have had the same row."""
  hashes = {}
  for file in workdir.parent.glob(f'{workdir.name}.notes.*'):
    for update, row, value in map(str.split, file.read_text().splitlines()):
      assert hashes.setdefault((first_step + int(update), int(row)), value) == value
    file.unlink()
  return hashes


@pytest.fixture(scope='module')
def single(folder, tmp_path_factory) -> tuple[list[dict], dict]:
  """The metrics and the examples of an uninterrupted run of one process."""
  workdir = tmp_path_factory.mktemp('runs') / 'single'
  with Run(folder, workdir, 1) as run:
    assert run.exit_codes() == [0], run.output(0)
  return metrics(workdir), examples(workdir, 0)


# Starts of a run: processes, the update and the processes of a SIGTERM, first and last step. Of
# several processes all stop after the same update, two later, and save.
@pytest.mark.parametrize(
  'starts',
  [
    ((2, '1:1', 0, 3), (1, '0:', 3, 8)),
    pytest.param(
      ((4, '1:23', 0, 3), (1, '1:0', 3, 4), (2, '0:', 4, 8)),
      marks=pytest.mark.slow,  # Seven processes start. The case above has fewer.
    ),
  ],
  ids=['2-1', '4-1-2'],
)
def test_starts_with_other_numbers_of_processes_equal_the_single_run(
  starts, folder, single, tmp_path
):
  workdir, trained = tmp_path / 'run', {}
  for processes, sigterm_at, begin, end in starts:
    with Run(folder, workdir, processes, SIGTERM_AT=sigterm_at) as run:
      assert run.exit_codes() == [143 if end < 8 else 0] * processes, run.output(0)
      assert store.latest(workdir) == end
      if processes > 1:
        assert f'process 1 of {processes}: all agree' in run.output(1)
      if end < 8:
        assert all(f'stopped at step {end}' in run.output(index) for index in range(processes))
    result = examples(workdir, begin)
    assert {step for step, _ in result} == set(range(begin + 1, end + 1))
    trained |= result
  assert trained == single[1]
  lines = metrics(workdir)
  assert [line['step'] for line in lines] == list(range(1, 9))
  for line, single_line in zip(lines, single[0], strict=True):
    assert line == pytest.approx(single_line, rel=2e-4)


@pytest.mark.slow  # Stand-in: test_learned_weights.py, with one process and two meshes.
def test_two_processes_learn_weights_and_train_on_the_examples_of_one(folder, tmp_path):
  entry = "dict(source='jsonl', path='my.jsonl', root='', task='dialog', weight=1.0)"
  learned = "dict(every=2, rate=1.0, limit=2.0, reference='', reference_losses=dict(a=9.0, b=0.0))"
  config = (folder / 'config.py').read_text()
  for old, new in (
    ('mixture=dict(mine=entry)', f'mixture=dict(a={entry}, b={entry})'),
    ('validation=dict()', f'validation=dict(a={entry}, b={entry})'),
    ("by='examples'", f"by='learned', learned={learned}"),
  ):
    assert old in config
    config = config.replace(old, new)
  (tmp_path / 'config.py').write_text(config)
  code = f'import sphinx_jax.data.mixture as mixture; mixture.BLOCK = 16\n{HOOKED_TRAIN}'
  results = []
  for processes in (1, 2):
    workdir = tmp_path / f'{processes}'
    flags = f'--config={tmp_path}/config.py', f'--workdir={workdir}'
    with Run(folder, workdir, processes, code=(code, *flags)) as run:
      assert run.exit_codes() == [0] * processes, run.output(0)
    stages = store.load_meta(workdir)['learned_stages']
    results.append((stages, metrics(workdir), examples(workdir, 0)))
  (stages, lines, trained), (other_stages, other_lines, other_trained) = results
  assert len(stages) >= 2 and [stage[0] for stage in stages] == [stage[0] for stage in other_stages]
  assert trained == other_trained
  for line, other_line in zip(lines, other_lines, strict=True):
    assert other_line == pytest.approx(line, rel=2e-4)


@pytest.mark.slow  # Stand-in: test_run.py keeps features on a mesh of one process.
def test_two_processes_keep_features_and_equal_one_without(folder, tmp_path):
  frozen = "--config.trainable=(('encoders/.*', 'frozen'), ('.*', 'train'))"
  train = "import runpy; runpy.run_module('sphinx_jax.train', run_name='__main__')"
  results = []
  for processes, directory in ((1, ''), (2, tmp_path / 'features')):
    workdir = tmp_path / f'{processes}'
    flags = f'--workdir={workdir}', f'--config.cache_features={directory}', '--config.steps=16'
    code = train, f'--config={folder}/config.py', frozen, *flags
    with Run(folder, workdir, processes, code=code) as run:
      assert run.exit_codes() == [0] * processes, run.output(0)
      results.append(metrics(workdir))
      outputs = [run.output(index) for index in range(processes)]
  for line, single_line in zip(*results, strict=True):
    assert line == pytest.approx(single_line, rel=2e-4)
  # Each process encodes the images of its own rows, and reads some of them in the second epoch.
  for output in outputs:
    read, computed = map(int, re.search(r'features: (\d+) read, (\d+) computed', output).groups())
    assert read > 0 and computed > 10


def test_processes_with_other_settings_all_stop_and_name_the_differences(folder, tmp_path):
  flags_of = {1: ('--config.optimizer.lr=0.5', '--config.seed=3')}
  with Run(folder, tmp_path / 'run', 2, flags_of=flags_of, commits='ab') as run:
    assert run.exit_codes() == [2, 2]
    for index in (0, 1):
      assert run.last_line(index).startswith(
        'error: 2 processes: got config.optimizer.lr is 0.5 on process 1, 0.01 on process 0; '
        'config.seed is 3 on process 1, 0 on process 0; '
        "commit is 'b' on process 1, 'a' on process 0, expected the same on all"
      )
  assert not (tmp_path / 'run').exists()


def test_a_killed_process_ends_a_busy_one_within_the_heartbeat_timeout(folder, tmp_path):
  kill_one_of_two(folder, tmp_path, victim=1, action='sleep')


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('action', ['collective', 'gather', 'sleep'])
def test_a_killed_process_ends_the_other_whatever_it_does(folder, tmp_path, victim, action):
  kill_one_of_two(folder, tmp_path, victim, action)


def kill_one_of_two(folder, tmp_path, victim, action):
  actions = [action, action]
  if action == 'gather':
    actions[victim] = 'sleep'
  with Run(folder, tmp_path / 'run', 2, code=(SESSION, *actions)) as run:
    run.wait_until_joined()
    time.sleep(0.5)
    run.processes[victim].kill()
    killed = time.monotonic()
    code = run.exit_codes()[1 - victim]
    seconds = time.monotonic() - killed
    print(f'{action}, process {victim} killed: the other left with {code} after {seconds:.1f} s')
    output = run.output(1 - victim)
    assert seconds < HEARTBEAT_TIMEOUT + 20
    if code == ABORTED:
      assert 'another task died' in output
    else:
      assert code == hosts.EXIT_RESTART
      last_line = run.last_line(1 - victim)
      assert last_line.startswith(f'error: process {1 - victim} of 2 lost the connection'), output
      assert 'run the same command again on all hosts' in last_line


@pytest.mark.parametrize('actions', [('gather', 'fail', 'sleep'), ('collective', 'fail')])
def test_an_error_of_one_process_ends_all(folder, tmp_path, actions):
  with Run(folder, tmp_path / 'run', len(actions), code=(SESSION, *actions)) as run:
    codes = run.exit_codes()
    assert codes[:2] == [2, 2], run.output(0)
    assert run.last_line(1) == 'error: data: got a, expected b; c'
    message = f'error: process 1 of {len(actions)} stopped: data: got a, expected b; c'
    assert run.last_line(0) == message
    # jax ends a process that neither waits for a message nor for a collective.
    assert codes[2:] == [ABORTED] * len(codes[2:])


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'JAX_PROCESS_ID': '0'}, 'only JAX_PROCESS_ID, expected JAX_COORDINATOR_ADDRESS, JAX_NUM'),
    ({hosts.ADDRESS: 'a:1', hosts.COUNT: '2', hosts.INDEX: '2'}, 'JAX_PROCESS_ID=2 and JAX_NUM'),
    ({hosts.ADDRESS: 'a:1', hosts.COUNT: 'two', hosts.INDEX: '0'}, "JAX_NUM_PROCESSES: got 'two'"),
  ],
)
def test_wrong_settings_are_named(monkeypatch, settings, message):
  for name, value in settings.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(errors.SphinxError, match=message):
    hosts.initialize()


def test_processes_that_do_not_join_are_not_waited_for(folder, tmp_path):
  settings = {hosts.ADDRESS: '127.0.0.1:9', hosts.COUNT: '2', hosts.INDEX: '1'}
  with Run(
    folder, tmp_path / 'run', 1, code=(SESSION,), SPHINX_JAX_JOIN_TIMEOUT='2', **settings
  ) as run:
    assert run.exit_codes() == [ABORTED]
    expected = 'process 1 of 2: joining the other processes at 127.0.0.1:9, for at most 2 s'
    assert expected in run.output(0)


@pytest.mark.slow  # Stand-in: test_mix_stats.py measures on a mesh of one process.
@pytest.mark.parametrize('kind', statistics.KINDS)
def test_two_processes_measure_what_one_does(folder, tmp_path, kind):
  with Run(folder, tmp_path / 'run', 1, '--config.steps=2') as run:
    assert run.exit_codes() == [0], run.output(0)
  code = "import runpy; runpy.run_module('sphinx_jax.mix_stats', run_name='__main__')"
  flags = f'--checkpoint={tmp_path / "run"}', f'--statistics={kind}', '--batches=2'
  found = []
  for processes in (1, 2):
    output = tmp_path / f'of_{processes}'
    with Run(folder, output, processes, code=(code, *flags, f'--output={output}')) as run:
      assert run.exit_codes() == [0] * processes, run.output(0)
    found.append({path: array.read(()) for path, array in stream.read(output).items()})
  assert found[0].keys() == found[1].keys()
  for path, value in found[0].items():
    np.testing.assert_allclose(found[1][path], value, rtol=1e-4, atol=1e-7, err_msg=path)
