"""Errors for the user. A message has four facts: who, what it got, what it expected, what to do."""

import difflib
import errno
import os
import shutil
from collections.abc import Iterable

# A full disk, an exhausted quota, a limit on the size of files.
_FULL_DISK = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


class SphinxError(ValueError):
  """An error with a message for the user. Entry points print it as one line without a traceback."""


def make(who: str, got: str, expected: str, do: str) -> SphinxError:
  """Returns the error `who: got ..., expected ...; do`. The caller raises it."""
  return SphinxError(f'{who}: got {got}, expected {expected}; {do}')


def unknown(kind: str, name: str, choices: Iterable[str]) -> SphinxError:
  """Returns the error for a name that is not in a table, with the choices and the nearest match."""
  choices = sorted(choices)
  near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
  advice = f"did you mean '{near[0]}'?" if near else 'choose one of them'
  listed = ', '.join(choices) or 'nothing (the table is empty)'
  return make(kind, f"'{name}'", f'one of {listed}', advice)


def write_failed(path: str | os.PathLike, error: Exception, what: str = 'directory') -> SphinxError:
  """Returns the error for files that could not be written: the path, the cause, the free space.

  Args:
    path: the output that the user named.
    error: what was raised.
    what: name of the output in the message.
  """
  full = next((text for text in _FULL_DISK if text in str(error)), None)
  if full is None:
    reason = _reason(path, error)
    return make(f"{what} '{path}'", reason, 'a place that can be written', 'give another one')
  reason = full.lower()
  try:
    reason += f', {shutil.disk_usage(path).free:,} bytes free'
  except OSError:  # A bucket, or a directory that does not exist.
    pass
  return make(
    f"{what} '{path}'",
    reason,
    'to write all of it',
    'make room and run the same command again; earlier saves are complete',
  )


def _reason(path: str | os.PathLike, error: Exception) -> str:
  """Returns why a write failed, with the file unless it is `path` itself."""
  if not isinstance(error, OSError) or not error.strerror:
    return f'{type(error).__name__} {(str(error).splitlines() or [""])[0]}'[:300]
  is_named = error.filename and os.fspath(error.filename) != os.fspath(path)
  return error.strerror + (f" for '{error.filename}'" if is_named else '')


def from_os_error(error: OSError) -> SphinxError:
  """Returns the error for a file that the operating system refuses to open, read or write."""
  who = 'file system' if error.filename is None else f"file '{error.filename}'"
  return make(
    who,
    error.strerror or str(error),
    'a path that can be used as the command needs it',
    'check the path, its permissions and the space on its disk',
  )
