"""Several processes as one run: joining, comparing settings, exchanging values, ending together.

With one process, every function here is a no-op or returns its argument. With several, all
processes must make the same calls in the same order. Barriers are device collectives
(`jax.experimental.multihost_utils`). JSON values, which are also needed before devices exist, and
error messages go through the key-value store of jax.distributed (parallel/kv_store.py).
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
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from sphinx_jax.core import config as config_lib, errors, paths
from sphinx_jax.core.progress import log
from sphinx_jax.parallel import kv_store

# Environment variables. The first three are jax's own.
ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
DETECT = 'SPHINX_JAX_DISTRIBUTED'  # 1: jax detects the three itself (TPU slices, Slurm).
HEARTBEAT_TIMEOUT = 'SPHINX_JAX_HEARTBEAT_TIMEOUT'  # Seconds until a silent process is dead.
JOIN_TIMEOUT = 'SPHINX_JAX_JOIN_TIMEOUT'  # Seconds until all processes must have joined.
COMMIT = 'SPHINX_JAX_COMMIT'
# Versions that must be equal on all processes.
PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'sphinx_jax')

EXIT_RESTART = 75  # EX_TEMPFAIL: the run is fine; start it again on all hosts.
_FAILURE = 'failure'  # Key of the first process's failure: JSON [exit code, message].
_POLL_SECONDS = 1.0  # Time between two looks at _FAILURE while waiting for a value.
# How errors of jax begin when a collective or a message finds the other process gone. Gloo, the
# collectives of CPU devices, has an error text of its own.
_LOST_PEER = ('ABORTED', 'CANCELLED', 'DEADLINE_EXCEEDED', 'UNAVAILABLE')

_counter = itertools.count()  # Numbers the messages, equally on all processes.


class SharedError(errors.SphinxError):
  """An error that every process raises."""


class _PeerFailure(Exception):
  """Another process has published a failure while this one waited for a value."""


def process_count() -> int:
  """The number of processes of this run."""
  return kv_store.process_count()


def process_index() -> int:
  """The index of this process, from 0."""
  return kv_store.process_index()


def initialize() -> None:
  """Initializes jax.distributed from the environment. Does nothing if no variable is set.

  If not all processes join in time, jax aborts this process with exit code 134.

  Raises:
    SphinxError: variables are missing or are not numbers.
  """
  settings = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
  is_requested = settings or os.environ.get(DETECT) == '1'
  if jax.distributed.is_initialized() or not is_requested:
    return
  if settings and len(settings) < 3:
    raise errors.make(
      'environment',
      f'only {", ".join(settings)}',
      f'{ADDRESS}, {COUNT} and {INDEX}',
      'set all three, or none for a single process',
    )
  arguments = {}
  if settings:
    index, count = _number(INDEX, -1), _number(COUNT, -1)
    if not (0 <= index < count and index == int(index) and count == int(count)):
      raise errors.make(
        'environment',
        f'{INDEX}={index:g} and {COUNT}={count:g}',
        'a process number below the number of processes',
        'number the processes from 0',
      )
    arguments = dict(
      coordinator_address=settings[ADDRESS], num_processes=int(count), process_id=int(index)
    )
  join_timeout = int(_number(JOIN_TIMEOUT, 300))
  log.info(
    '%s: joining the other processes at %s, for at most %d s',
    f'process {int(index)} of {int(count)}' if settings else 'this process',
    settings.get(ADDRESS, 'the address that jax detects'),
    join_timeout,
  )
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # JAX's preemption service would catch SIGTERM; training/stopping.py handles it.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    **arguments,
    initialization_timeout=join_timeout,
    heartbeat_timeout_seconds=int(_number(HEARTBEAT_TIMEOUT, 100)),
  )


def _number(name: str, default: float) -> float:
  value = os.environ.get(name) or str(default)
  try:
    return float(value)
  except ValueError:
    raise errors.make(f'environment {name}', f"'{value}'", 'a number', 'correct it') from None


@contextlib.contextmanager
def session(facts: Mapping[str, Any]) -> Iterator[None]:
  """The time in which the processes are one run: they compare settings first and end together.

  An error of one process ends all of them:

  - The failing process publishes its message and leaves with code 2 (SphinxError), 130 (Ctrl-C) or
    1 (anything else).
  - A process that waits for a value, or whose collective fails, finds the message and leaves with
    the same code.
  - Any other process is aborted by jax with code 134 when the heartbeat of the failed one is
    overdue (SPHINX_JAX_HEARTBEAT_TIMEOUT, 100 s by default).

  A process that dies without a message ends the others with code 75 (EXIT_RESTART) if a collective
  fails, else with jax's 134. A restart fixes both.

  Args:
    facts: see `assert_equal`.
  """
  initialize()
  if process_count() == 1:
    yield
    return
  try:
    assert_equal(facts)
    yield
    barrier()
  except (SystemExit, SharedError):  # Raised on every process. jax's exit handler waits for all.
    raise
  except BaseException as error:
    code, line = _failure(error)
    print(f'error: {line}', file=sys.stderr, flush=True)
    if process_index() == 0:
      time.sleep(3 * _POLL_SECONDS)  # It holds the store; the others read the message meanwhile.
    # A normal exit would run jax's exit handler, which waits for the other processes at a barrier
    # and aborts with code 134 when they do not come.
    sys.stdout.flush()
    os._exit(code)


def _failure(error: BaseException) -> tuple[int, str]:
  """Returns the exit code and the last line for an error, after publishing it to the others."""
  this = f'process {process_index()} of {process_count()}'
  if isinstance(error, OSError) and not isinstance(error, ConnectionError):
    error = errors.from_os_error(error)
  if isinstance(error, errors.SphinxError):
    code, line, published = 2, str(error), f'{this} stopped: {error}'
  elif isinstance(error, KeyboardInterrupt):
    code, line = 130, f'{this} was interrupted; run the same command again to resume'
    published = line
  else:
    with contextlib.suppress(Exception):  # The store is gone if process 0 is.
      if failure := kv_store.get(_FAILURE):
        code, line = json.loads(failure)
        return code, line
    traceback.print_exception(error)
    if _is_lost_peer(error):  # Not published: the process that is gone may have failed first.
      return EXIT_RESTART, (
        f'{this} lost the connection to another process ({_first_line(error)}); '
        'run the same command again on all hosts: it resumes from the last save'
      )
    code, line = 1, f'{this} failed: {_first_line(error)}'
    published = line
  with contextlib.suppress(Exception):  # The store is gone if process 0 is.
    kv_store.set_once(_FAILURE, json.dumps([code, published]))
  return code, line


def _first_line(error: BaseException) -> str:
  return f'{type(error).__name__}: {error}'.splitlines()[0]


def _is_lost_peer(error: BaseException) -> bool:
  """Whether an error may be that of a collective or message whose other side is gone."""
  return 'gloo' in str(error).lower() or str(error).startswith(_LOST_PEER)


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'none'


def assert_equal(facts: Mapping[str, Any]) -> None:
  """Checks that the facts, the commit and the versions of all processes equal those of process 0.

  Args:
    facts: nested values that JSON can hold, for instance the config.

  Raises:
    SharedError: names the differing values and their processes.
  """
  if process_count() == 1:
    return
  versions = {name: _version(name) for name in PACKAGES} | {'python': platform.python_version()}
  local = json.loads(json.dumps({**facts, 'commit': commit(), 'versions': versions}))
  first = broadcast(local)
  local_differences = [
    f'{key} is {value!r} on process {process_index()}, {first_value!r} on process 0'
    for key, first_value, value in config_lib.differences(first, local)
  ]
  differences = list(itertools.chain.from_iterable(all_gather(local_differences)))
  if differences:
    more = '; ...' if len(differences) > 5 else ''
    raise SharedError(
      errors.make(
        f'{process_count()} processes',
        '; '.join(differences[:5]) + more,
        'the same on all',
        'start all of them with the same command, from the same commit and environment',
      )
    )
  log.info(
    'process %d of %d: all agree on config %s, commit %s, jax %s',
    process_index(),
    process_count(),
    hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8],
    local['commit'][:8],
    versions['jax'],
  )


def commit() -> str:
  """The commit of the package: SPHINX_JAX_COMMIT, or git's answer, or 'unknown'."""
  if os.environ.get(COMMIT):
    return os.environ[COMMIT]
  command = ['git', '-C', pathlib.Path(__file__).parent, 'rev-parse', 'HEAD']
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'


def barrier() -> None:
  """Waits until every process is here. A device collective: it initializes the devices."""
  if process_count() > 1:
    multihost_utils.sync_global_devices(f'sphinx_jax/{next(_counter)}')


def largest(value: int) -> int:
  """Returns the largest value of all processes. A device collective, as `barrier`."""
  if process_count() == 1:
    return value
  return int(multihost_utils.process_allgather(np.int32(value)).max())


def broadcast(value: Any) -> Any:
  """Returns process 0's value on every process. JSON must be able to hold it."""
  if process_count() == 1:
    return value
  key = f'message/{next(_counter)}'
  if process_index() == 0:
    kv_store.set_once(key, json.dumps(value))
  return json.loads(_wait_for(key))


def all_gather(value: Any) -> list:
  """Returns the values of all processes, by process index. JSON must be able to hold them."""
  if process_count() == 1:
    return [value]
  key = f'message/{next(_counter)}'
  kv_store.set_once(f'{key}/{process_index()}', json.dumps(value))
  return [json.loads(_wait_for(f'{key}/{index}')) for index in range(process_count())]


def _wait_for(key: str) -> str:
  """Waits for a value until a process publishes a failure. jax aborts the wait for a dead one."""
  while True:
    value = kv_store.wait(key, _POLL_SECONDS)
    if value is not None:
      return value
    if kv_store.get(_FAILURE) is not None:
      raise _PeerFailure  # `session` reads the message.


def on_process_0(work: Callable[[], Any]) -> None:
  """Runs `work` on process 0 while the others wait. Its SphinxError is raised on every process."""
  message = ''
  if process_index() == 0:
    try:
      work()
    except errors.SphinxError as error:
      if process_count() == 1:
        raise
      message = str(error)
  message = broadcast(message)
  if message:
    raise SharedError(message)


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike, what: str = 'directory') -> Iterator[None]:
  """Keeps other runs out of the output folder of this run; see `paths.locked`.

  Process 0 holds the lock for all processes of the run.
  """
  with contextlib.ExitStack() as stack:
    on_process_0(lambda: stack.enter_context(paths.locked(folder, what)))
    yield


def publish(key: str, value: str) -> None:
  """Publishes a value for all processes under a key. The first value stays."""
  kv_store.set_once(f'published/{key}', value)


def lookup(key: str) -> str | None:
  """Returns the value published under a key, or None."""
  return kv_store.get(f'published/{key}')


def local_rows(sharding: Sharding, total: int) -> tuple[int, ...]:
  """Returns the rows, ascending, of an array of `total` rows that this process's devices hold."""
  rows = set()
  for (part,) in sharding.addressable_devices_indices_map((total,)).values():
    rows.update(range(*part.indices(total)))
  return tuple(sorted(rows))
