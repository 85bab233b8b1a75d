"""Leases: processes on one or many machines share work through files in a folder or a bucket.

A process that claims a piece of work writes its name and a time into a file, and renews the time
while it works. After that time the work is free again, so a process that was killed blocks nobody.
In a local folder the process holds a lock, too. The lock ends with its process, so other processes
of the same machine need not wait for the time.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import filelock
from etils import epath

from sphinx_jax.core import files, paths
from sphinx_jax.core.progress import log

# Files of buckets cannot be locked. Two processes that write at the same time both read the file
# again after these seconds, and the last one to write has the lease.
_SETTLE_SECONDS = 2.0


@contextlib.contextmanager
def claimed(folder: files.Path, name: str, seconds: float) -> Iterator[bool]:
  """Claims a piece of work for the time of the block, if it is free.

  Clocks of different machines may differ by much less than `seconds`.

  Args:
    folder: folder or bucket of the leases, which all processes share; made if it is absent.
    name: name of the work, a file name.
    seconds: how long the lease of a process lasts that does not renew it any more.

  Yields:
    Whether this process has the work. It is False if another one has it.

  Raises:
    SphinxError: the folder cannot be made or written.
  """
  folder = epath.Path(folder)
  paths.make_folder(folder)
  file = folder / f'{name}.json'
  host, lease_id = socket.gethostname(), uuid.uuid4().hex

  def write() -> None:
    files.write_json(
      file, {'id': lease_id, 'host': host, 'process': os.getpid(), 'until': time.time() + seconds}
    )

  with contextlib.ExitStack() as stack:
    is_remote = files.is_remote(folder)
    if not is_remote:
      try:
        stack.enter_context(filelock.FileLock(folder / f'{name}.lock', timeout=0))
      except filelock.Timeout:
        yield False
        return
    lease = _read(file)
    # With the lock in hand, a lease of this machine is that of a process that has ended.
    is_over = lease is None or time.time() > lease['until']
    if not is_over and (is_remote or lease['host'] != host):
      yield False
      return
    write()
    if is_remote:
      time.sleep(_SETTLE_SECONDS)
      if not _is_mine(file, lease_id):
        yield False
        return
    ended = threading.Event()
    renewal = threading.Thread(
      target=_renew, args=(file, lease_id, write, seconds, ended), daemon=True
    )
    renewal.start()
    try:
      yield True
    finally:
      ended.set()
      renewal.join()
      if _is_mine(file, lease_id):
        file.unlink()


def _renew(
  file: epath.Path,
  lease_id: str,
  write: Callable[[], None],
  seconds: float,
  ended: threading.Event,
) -> None:
  """Renews a lease until the work has ended, or another process has the lease."""
  while not ended.wait(seconds / 4):
    with contextlib.suppress(Exception):  # The disk may be back for the next renewal.
      if not _is_mine(file, lease_id):
        log.warning('%s: another process took this work over; both go on with it', file)
        return
      write()


def _read(file: epath.Path) -> dict | None:
  """The lease in a file, or None if there is none."""
  return files.read_json(file) if file.exists() else None


def _is_mine(file: epath.Path, lease_id: str) -> bool:
  lease = _read(file)
  return lease is not None and lease['id'] == lease_id
