"""Paths that a user names: the home folder, outputs that can be written, locked folders."""

import contextlib
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator

import filelock
from etils import epath

from sphinx_jax.core import errors, files

_BUCKETS = ('gs://', 's3://', 'az://', 'hf://')  # What etils.epath opens.
LOCK = '.lock'  # The file in a folder that a process holds while it writes there.


def expand(path: str) -> str:
  """Returns a path with the home folder in place of a leading `~`.

  Raises:
    SphinxError: there is no such home folder, or the path is an address on the web.
  """
  if files.is_remote(path) and not path.startswith(_BUCKETS):
    raise errors.make(
      f"path '{path}'",
      'an address',
      f'a path, or one of {", ".join(_BUCKETS)}',
      'download it first',
    )
  expanded = os.path.expanduser(path)
  if expanded.startswith('~'):
    raise errors.make(
      f"path '{path}'", 'no home folder of this name', 'a path', "write './~' for a name with ~"
    )
  return expanded


def make_folder(path: files.Path, what: str = 'directory') -> None:
  """Makes a folder and its parents if they are absent.

  Args:
    path: the folder.
    what: its name in the message.

  Raises:
    SphinxError: a file or a dangling link is in the way, or the folder cannot be made.
  """
  if not files.is_remote(path):
    absolute = pathlib.Path(os.path.abspath(path))
    for place in (absolute, *absolute.parents):
      if os.path.lexists(place) and not os.path.isdir(place):
        kind = 'a link to nothing' if os.path.islink(place) else 'a file'
        where = '' if place == absolute else f" at '{place}'"
        raise errors.make(f"{what} '{path}'", f'{kind}{where}', 'a folder', 'give another one')
  with files.writing(path, what):
    epath.Path(path).mkdir(parents=True, exist_ok=True)


def check_file(path: files.Path, what: str = 'output') -> None:
  """Checks that a file can be written, before the work whose result it gets.

  Raises:
    SphinxError: it is a folder, its folder is missing, or one of them cannot be written.
  """
  if files.is_remote(path):
    return
  place = pathlib.Path(path)
  with files.writing(path, what):
    if place.is_dir():
      raise errors.make(f"{what} '{path}'", 'a folder', 'a file', 'add the name of the file')
    if place.is_fifo():  # Opening it would wait for a reader.
      raise errors.make(f"{what} '{path}'", 'a named pipe', 'a file', 'give another name')
    if not place.parent.is_dir():
      raise errors.make(
        f"{what} '{path}'",
        f"no folder '{place.parent}'",
        'one that exists',
        f'make it, or change --{what}',
      )
    existed = os.path.lexists(place)
    place.open('ab').close()
    if not existed:
      place.unlink()


@contextlib.contextmanager
def locked(folder: files.Path, what: str = 'directory') -> Iterator[None]:
  """Keeps other processes out of an output folder, which is made if it is absent.

  The lock ends with its process, also after a kill. Buckets have no locks: there the block just
  runs. A new folder that is still empty at the end is removed.

  Args:
    folder: the folder that the block writes to.
    what: its name in the message.

  Raises:
    SphinxError: another process has the lock, or the folder cannot be made or written.
  """
  if files.is_remote(folder):
    yield
    return
  folder = pathlib.Path(os.path.abspath(folder))
  is_new = not os.path.lexists(folder)
  make_folder(folder, what)
  file = folder / LOCK
  lock = filelock.FileLock(file, timeout=0)
  with files.writing(folder, what):
    try:
      lock.acquire()
    except filelock.Timeout:
      raise errors.make(
        f"{what} '{folder}'",
        f'another process at work in it ({_holder(file)})',
        'one at a time',
        f'wait for it, stop it, or give another {what}',
      ) from None
  try:
    with files.writing(folder, what):
      file.write_text(f'process {os.getpid()} on {socket.gethostname()}')
    yield
  finally:
    with contextlib.suppress(OSError):  # The folder may be gone or the disk unplugged.
      file.unlink(missing_ok=True)  # While it is held: a process that waits for it starts over.
      if is_new:
        folder.rmdir()  # Only if it is empty.
    lock.release()


def _holder(file: pathlib.Path) -> str:
  with contextlib.suppress(OSError, UnicodeDecodeError):
    return file.read_text()
  return 'unknown'


@contextlib.contextmanager
def new_folder(output: files.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary folder that is renamed to `output` if the block does not raise.

  Raises:
    SphinxError: `output` exists and is no empty folder, another process writes it, or it is in a
      bucket or cannot be written.
  """
  if files.is_remote(output):  # Folders of buckets cannot be renamed.
    raise errors.make(f"output '{output}'", 'a bucket', 'a local folder', 'copy the folder later')
  final = pathlib.Path(output).absolute()
  if os.path.lexists(final) and (not final.is_dir() or any(final.iterdir())):
    raise errors.make(
      f"output '{output}'",
      'a path that exists already',
      'a new or empty folder',
      'give another --output',
    )
  partial = final.with_name(final.name + '.partial')
  with files.writing(final, 'output'):
    with locked(partial, 'output'):
      for leftover in partial.iterdir():  # Of an interrupted call.
        if leftover.name != LOCK:
          leftover.unlink()
      try:
        yield partial
      except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
      final.rmdir()
    os.rename(partial, final)


def is_empty(folder: files.Path) -> bool:
  """Whether a folder is absent, or has nothing but what a start that was killed leaves there."""
  folder = epath.Path(folder)
  inside = folder.iterdir() if folder.is_dir() else []
  return all(path.name == LOCK or path.suffix == '.tmp' for path in inside)
