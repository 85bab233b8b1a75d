"""Several processes as one run: how they find each other, agree, wait for each other, and end together.

Everything here is nothing where there is one process. Words between processes go through the key-value store of jax's
coordination service, which process 0 holds; every process must make the same calls in the same order.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # The store has no public door; Orbax takes this one too.
from jax.sharding import Sharding

from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.core.progress import log
from sphinx_jax.parallel import watch

ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
FIND = 'SPHINX_JAX_DISTRIBUTED'  # 1: jax finds the three itself (a TPU slice, Slurm).
LOST_AFTER = 'SPHINX_JAX_HEARTBEAT_TIMEOUT'  # Seconds, after which a silent process is lost.
JOIN_WITHIN = 'SPHINX_JAX_JOIN_TIMEOUT'  # Seconds, for all processes to come.
COMMIT = 'SPHINX_JAX_COMMIT'
PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'sphinx_jax')
_ROOM = 'sphinx_jax/words'
_DAY = (
  86_400_000  # Milliseconds. The watch, not a time limit, ends a wait for a process that is gone.
)
_numbers = itertools.count()


class SharedError(errors.SphinxError):
  """An error that every process raises."""


def process_count() -> int:
  """Number of processes."""
  return distributed.global_state.num_processes


def process_index() -> int:
  """Which of them this is."""
  return distributed.global_state.process_id


def initialize() -> None:
  """Joins the processes that the environment names; without a word there, this is the only one.

  Raises:
    SphinxError: settings that are incomplete or no numbers.
  """
  given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
  if distributed.global_state.client is not None or not given and os.environ.get(FIND) != '1':
    return
  if given and len(given) < 3:
    raise errors.make(
      'environment',
      f'only {", ".join(given)}',
      f'{ADDRESS}, {COUNT} and {INDEX}',
      'set all three, or none for a single process',
    )
  number, total = (_seconds(name, -1) for name in (INDEX, COUNT)) if given else (0, 1)
  if not (0 <= number < total and number == int(number) and total == int(total)):
    raise errors.make(
      'environment',
      f'{INDEX}={number:g} and {COUNT}={total:g}',
      'a whole number below another',
      'count the processes from 0',
    )
  within, lost_after = int(_seconds(JOIN_WITHIN, 300)), int(_seconds(LOST_AFTER, 100))
  place = [f'process {int(number)} of {int(total)}' if given else 'this process']
  watch.catch_abort(
    lambda: str(
      errors.make(
        place[0],
        f'no connection in {within} s',
        f'all processes at {given.get(ADDRESS, "process 0")}',
        'see that all of them run, then run the same command again on all hosts',
      )
    )
  )
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.config.update(
    'jax_enable_preemption_service', False
  )  # It would take SIGTERM; training/stopping.py does.
  where = (
    dict(coordinator_address=given[ADDRESS], num_processes=int(total), process_id=int(number))
    if given
    else {}
  )
  # Ours is the first to notice; jax's own time is for what we overlooked.
  jax.distributed.initialize(
    **where, initialization_timeout=within, heartbeat_timeout_seconds=lost_after + 60
  )
  address = distributed.global_state.coordinator_address
  watch.catch_abort(lambda: watch.explain_lost(address))


def _seconds(name: str, default: float) -> float:
  value = os.environ.get(name) or str(default)
  try:
    return float(value)
  except ValueError:
    raise errors.make(f'environment {name}', f"'{value}'", 'a number', 'correct it') from None


@contextlib.contextmanager
def session(facts: Mapping[str, Any]) -> Iterator[None]:
  """The time in which the processes are one run: they agree on how it starts, and end together.

  An error of one process ends them all, and so does a process that is gone (parallel/watch.py). Those that mend
  themselves by starting again have the code 75.

  Args:
    facts: see `agree`.
  """
  initialize()
  if process_count() == 1:
    yield
    return
  guard = watch.Watch(
    distributed.global_state.client, process_index(), process_count(), _seconds(LOST_AFTER, 100)
  )
  try:
    assert_equal(facts)
    yield
    barrier()
  except SystemExit:  # All agreed to it.
    barrier()
    raise
  except errors.SphinxError as error:
    stopped = (
      ''
      if isinstance(error, SharedError)
      else f'process {process_index()} of {process_count()} stopped: '
    )
    guard.stop_all(2, f'{stopped}{error}', str(error))
  except KeyboardInterrupt:
    guard.stop_all(
      130,
      f'process {process_index()} of {process_count()} was interrupted; run the same command again to go on',
    )
  except BaseException as error:
    traceback.print_exc()
    if watch.is_connection(error):
      log.info('a connection is broken: looking for the process that is gone')
      guard.wait_for_end()
    guard.stop_all(
      1,
      f'process {process_index()} of {process_count()} failed: {type(error).__name__}: {error}'.splitlines()[
        0
      ],
    )
  finally:
    guard.close()


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'none'


def assert_equal(facts: Mapping[str, Any]) -> None:
  """Compares what must be the same everywhere with process 0: the facts, the commit, and the versions.

  Args:
    facts: JSON-able and nested, such as the config.

  Raises:
    SphinxError (on every process): which process has what.
  """
  if process_count() == 1:
    return
  versions = {name: _version(name) for name in PACKAGES} | {'python': platform.python_version()}
  mine = json.loads(json.dumps({**facts, 'commit': commit(), 'versions': versions}))
  first = broadcast(mine)
  lines = [
    f'{key} is {ours!r} on process {process_index()}, {theirs!r} on process 0'
    for key, theirs, ours in config_lib.differing(first, mine)
  ]
  found = [line for lines in all_gather(lines) for line in lines]
  if found:
    raise SharedError(
      errors.make(
        f'{process_count()} processes',
        '; '.join(found[:5]) + ('; ...' if len(found) > 5 else ''),
        'the same on all',
        'start all of them with the same command, from the same commit and environment',
      )
    )
  digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
  log.info(
    'process %d of %d: all agree on config %s, commit %s, jax %s',
    process_index(),
    process_count(),
    digest,
    mine['commit'][:8],
    versions['jax'],
  )


def commit() -> str:
  """The commit of the package: what the launch script says, else git of its checkout, else 'unknown'."""
  if os.environ.get(COMMIT):
    return os.environ[COMMIT]
  here = pathlib.Path(__file__).parent
  try:
    return subprocess.run(
      ['git', '-C', here, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'


def barrier() -> None:
  """Returns when every process is here."""
  if process_count() > 1:
    distributed.global_state.client.wait_at_barrier(f'{_ROOM}/{next(_numbers)}', _DAY)


def broadcast(value: Any) -> Any:
  """Process 0's value, on every process. It must be JSON-able."""
  if process_count() == 1:
    return value
  key, client = f'{_ROOM}/{next(_numbers)}', distributed.global_state.client
  if process_index() == 0:
    client.key_value_set(key, json.dumps(value))
  return json.loads(client.blocking_key_value_get(key, _DAY))


def all_gather(value: Any) -> list:
  """The values of all processes, in their order, on every process. They must be JSON-able."""
  if process_count() == 1:
    return [value]
  room, client = f'{_ROOM}/{next(_numbers)}', distributed.global_state.client
  client.key_value_set(f'{room}/{process_index()}', json.dumps(value))
  barrier()
  found = {
    int(key.rpartition('/')[2]): json.loads(text)
    for key, text in client.key_value_dir_get(f'{room}/')
  }
  return [found[process] for process in range(process_count())]


def on_process_0(work: Callable[[], Any]) -> None:
  """Process 0 does it, while the others wait; its SphinxError is that of all."""
  line = ''
  if process_index() == 0:
    try:
      work()
    except errors.SphinxError as error:
      if process_count() == 1:
        raise
      line = str(error)
  line = broadcast(line)
  if line:
    raise SharedError(line)


def publish(key: str, value: str) -> None:
  """Leaves a word for all processes under a name; the first one stands."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # ALREADY_EXISTS.
    distributed.global_state.client.key_value_set(f'{_ROOM}/{key}', value)


def lookup(key: str) -> str | None:
  """The word left under a name, or None."""
  try:
    return distributed.global_state.client.key_value_try_get(f'{_ROOM}/{key}')
  except jax.errors.JaxRuntimeError as error:
    if 'NOT_FOUND' not in str(error):
      raise
    return None


def local_rows(sharding: Sharding, total: int) -> tuple[int, ...]:
  """Which rows of an array of `total` rows lie on this process's devices, ascending."""
  parts = sharding.addressable_devices_indices_map((total,)).values()
  return tuple(sorted({row for part in parts for row in range(*part[0].indices(total))}))
