"""Several processes as one run: real ones on loopback, each with a few CPU devices, at a tiny width."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.training import writer

ROOT = pathlib.Path(__file__).parent.parent
LOST_AFTER = 12  # Seconds; less would take a busy machine for a dead one.
MACHINE = (
  'steps_per_second',
  'examples_per_second',
  'tokens_per_second',
  'data_wait_share',
  'rss_bytes',
)
CONFIG = """
from ml_collections import ConfigDict

def get_config():
  mine = dict(source='jsonl', path='my.jsonl', root='', task='dialog', weight=1.0, too_long='skip')
  return ConfigDict(dict(
      name='tiny', seed=0,
      model=dict(image_size=16, grid=1, pool=1, half_round=False, dtype='float32', remat='none', scan_unroll=1,
                 encoders=dict(clip=dict(view=16, patch=8, width=8, layers=1, heads=2)),
                 llm=dict(name='llama', vocab=512, width=16, layers=1, heads=4, kv_heads=4, multiple_of=8)),
      tokenizer='{root}/tests/golden/tokenizer.model', dialog=dict(system=''), data_dir='{data}', mixture=dict(mine=mine),
      batch=dict(size=4, seq_len=64, images=2, window=16), loss_weighting='token', trainable=(('.*', 'train'),),
      optimizer=dict(name='adamw', lr=1e-2, warmup=2, decay_to=0.1, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0,
                     accumulate=1, moment_dtype='float32'),
      steps=8, log_every=1, eval_every=100, eval_batches=1, checkpoint=dict(every=100, keep=3, keep_every=0),
      mesh=dict(data=2, fsdp=2, tensor=1), init_from='', validation=dict())).lock()
"""


@pytest.fixture(scope='module')
def given(tmp_path_factory) -> pathlib.Path:
  """A folder with a config, data, and a place for compiled programs."""
  folder = tmp_path_factory.mktemp('given')
  with (folder / 'my.jsonl').open('w') as file:
    for i in range(60):
      Image.fromarray(np.full((16, 16, 3), 4 * i, np.uint8)).save(folder / f'{i}.png')
      turns = [
        {'from': 'human', 'value': 'Which?'},
        {'from': 'gpt', 'value': f'number {i}' + ' and so on' * (i % 3)},
      ]
      file.write(json.dumps({'image': f'{i}.png', 'conversations': turns}) + '\n')
  (folder / 'config.py').write_text(
    CONFIG.replace('{root}', str(ROOT)).replace('{data}', str(folder))
  )
  return folder


# `python -m sphinx_jax.train`, which notes what goes to each update, and sends itself a signal where the test says so.
HOOKED = """
import os, runpy, signal, sys, xxhash
from sphinx_jax.parallel import hosts, placement
put, asked = placement.put, os.environ.get('ASKED_AT', '0:').split(':')
file, number = open(os.environ['NOTES'] + os.environ.get('JAX_PROCESS_ID', '0'), 'a', buffering=1), 0

def noted(batch, sharding):
  global number
  number += 1
  for row, tokens, images in zip(hosts.local_rows(sharding, 4), batch['tokens'], batch['images']):
    file.write(f'{number} {row} {xxhash.xxh3_64_hexdigest(tokens.tobytes() + images.tobytes())}\\n')
  if number == int(asked[0]) and str(hosts.process_index()) in asked[1]:
    os.kill(os.getpid(), signal.SIGTERM)
  return put(batch, sharding)

placement.put = noted
runpy.run_module('sphinx_jax.train', run_name='__main__')
"""
# Several processes without a model: a collective now and then, or none, and a wait.
WAITING = """
import sys, time
from sphinx_jax.core import progress
from sphinx_jax.parallel import hosts
progress.setup_logging()
with hosts.session({'facts': 1}):
  import jax, jax.numpy as jnp
  from jax.experimental import multihost_utils
  print('joined', flush=True)
  while True:
    if sys.argv[1] == 'collective':
      multihost_utils.process_allgather(jnp.ones(2))
    time.sleep(0.1)
"""


class Run:
  """Processes of `python -m sphinx_jax.train`, or of other code, with four devices in all; none is left behind."""

  def __init__(
    self,
    given: pathlib.Path,
    workdir: pathlib.Path,
    processes: int,
    *flags: str,
    code: tuple[str, ...] = (),
    only: dict[int, tuple[str, ...]] | None = None,
    commits: str = 'aaaa',
    **environment: str,
  ):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    self.files = [
      workdir.parent / f'{workdir.name}.{number}.{time.monotonic_ns()}'
      for number in range(processes)
    ]
    common = (
      os.environ
      | environment
      | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={4 // processes}',
        'JAX_COMPILATION_CACHE_DIR': str(given / 'programs'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        'SPHINX_JAX_HEARTBEAT_TIMEOUT': str(LOST_AFTER),
        'PYTHONPATH': str(ROOT),
        'NOTES': str(workdir) + '.notes.',
      }
    )
    self.processes = []
    for number, file in enumerate(self.files):
      own = (
        {}
        if processes == 1
        else {
          'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
          'JAX_NUM_PROCESSES': str(processes),
          'JAX_PROCESS_ID': str(number),
        }
      )
      own['SPHINX_JAX_COMMIT'] = commits[number]
      extra = (only or {}).get(number, ())
      train = '-c', HOOKED, f'--config={given}/config.py', f'--workdir={workdir}', *flags, *extra
      self.processes.append(
        subprocess.Popen(
          [sys.executable, *(code or train)],
          env=common | own,
          stdout=file.open('w'),
          stderr=subprocess.STDOUT,
          cwd=given,
        )
      )

  def wait(self) -> list[int]:
    """Exit codes."""
    return [process.wait(400) for process in self.processes]

  def said(self, number: int) -> str:
    return self.files[number].read_text()

  def last(self, number: int) -> str:
    return self.said(number).splitlines()[-1]

  def __enter__(self) -> 'Run':
    return self

  def __exit__(self, *_) -> None:
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        process.kill()
      process.wait()


def lines(workdir: pathlib.Path) -> list[dict]:
  return [
    {name: value for name, value in line.items() if name not in MACHINE}
    for line in writer.read(workdir)
  ]


def examples(workdir: pathlib.Path, begin: int) -> dict[tuple[int, int], str]:
  """(step, row) -> hash of what a start from step `begin` trained on; several processes may have had the same row."""
  found = {}
  for file in workdir.parent.glob(f'{workdir.name}.notes.*'):
    for number, row, value in map(str.split, file.read_text().splitlines()):
      assert found.setdefault((begin + int(number), int(row)), value) == value
    file.unlink()
  return found


@pytest.fixture(scope='module')
def single(given, tmp_path_factory) -> tuple[list[dict], dict]:
  """What an unbroken run of one process writes, and what it trains on."""
  workdir = tmp_path_factory.mktemp('runs') / 'single'
  with Run(given, workdir, 1) as run:
    assert run.wait() == [0], run.said(0)
  return lines(workdir), examples(workdir, 0)


def test_four_processes_then_two_then_one_are_the_single_run(given, single, tmp_path):
  workdir, trained = tmp_path / 'run', {}
  # SIGTERM reaches one process at its first update, or both; all stop after the same one, two later, and save.
  for processes, asked, begin, end in ((4, '1:2', 0, 3), (2, '1:01', 3, 6), (1, '0:', 6, 8)):
    with Run(given, workdir, processes, ASKED_AT=asked) as run:
      assert run.wait() == [143 if end < 8 else 0] * processes, run.said(0)
      assert store.latest(workdir) == end
      if processes > 1:
        assert f'process 1 of {processes}: all agree' in run.said(1)
        assert all(f'stopped at step {end}' in run.said(number) for number in range(processes))
    found = examples(workdir, begin)
    assert {step for step, _ in found} == set(range(begin + 1, end + 1))
    trained |= found
  assert trained == single[1]
  ours = lines(workdir)
  assert [line['step'] for line in ours] == list(range(1, 9))
  for our, their in zip(ours, single[0]):
    assert our == pytest.approx(their, rel=2e-4)


def test_two_processes_are_the_single_run(given, single, tmp_path):
  with Run(given, tmp_path / 'run', 2) as run:
    assert run.wait() == [0, 0], run.said(0)
  assert examples(tmp_path / 'run', 0) == single[1]
  for our, their in zip(lines(tmp_path / 'run'), single[0], strict=True):
    assert our == pytest.approx(their, rel=2e-4)


def test_processes_that_disagree_all_stop_and_say_which_has_what(given, tmp_path):
  with Run(
    given,
    tmp_path / 'run',
    2,
    only={1: ('--config.optimizer.lr=0.5', '--config.seed=3')},
    commits='ab',
  ) as run:
    assert run.wait() == [2, 2]
    for number in (0, 1):
      assert run.last(number).startswith(
        'error: 2 processes: got config.optimizer.lr is 0.5 on process 1, 0.01 on process 0; '
        "config.seed is 3 on process 1, 0 on process 0; commit is 'b' on process 1, 'a' on process 0, expected the same on all"
      )
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('doing', ['collective', 'nothing'])
def test_process_that_is_killed_stops_the_other_within_its_time(given, tmp_path, victim, doing):
  with Run(given, tmp_path / 'run', 2, code=('-c', WAITING, doing)) as run:
    until = time.monotonic() + 120
    while not all('joined' in run.said(number) for number in (0, 1)):
      assert time.monotonic() < until and all(
        process.poll() is None for process in run.processes
      ), run.said(0)
      time.sleep(0.1)
    time.sleep(0.5)
    run.processes[victim].kill()
    assert run.wait()[1 - victim] == 75  # Or this gives up, much later.
    assert run.last(1 - victim).startswith(f'error: process {victim}'), run.last(1 - victim)
    assert 'run the same command again on all hosts' in run.last(1 - victim)


def test_error_of_one_process_is_that_of_all(given, tmp_path):
  code = (
    'from sphinx_jax.core import errors\nfrom sphinx_jax.parallel import hosts\nimport time\n'
    'with hosts.session({}):\n  if hosts.process_index() == 1:\n    raise errors.make("data", "a", "b", "c")\n  time.sleep(200)'
  )
  with Run(given, tmp_path / 'run', 2, code=('-c', code)) as run:
    assert run.wait() == [2, 2]
    assert run.last(1) == 'error: data: got a, expected b; c'
    assert run.last(0) == 'error: process 1 of 2 stopped: data: got a, expected b; c'


def test_settings_that_are_incomplete_are_named(given, tmp_path):
  with Run(given, tmp_path / 'run', 1, JAX_PROCESS_ID='0') as run:
    assert run.wait() == [2]
    assert (
      'only JAX_PROCESS_ID, expected JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID'
      in run.last(0)
    )


def test_processes_that_do_not_come_are_not_waited_for(given, tmp_path):
  code = 'from sphinx_jax.parallel import hosts\nhosts.initialize()'
  with Run(
    given,
    tmp_path / 'run',
    1,
    code=('-c', code),
    JAX_COORDINATOR_ADDRESS='127.0.0.1:9',
    JAX_NUM_PROCESSES='2',
    JAX_PROCESS_ID='1',
    SPHINX_JAX_JOIN_TIMEOUT='2',
  ) as run:
    assert run.wait() == [75]
    assert run.last(0).startswith('error: process 1 of 2: got no connection in 2 s')
