"""Errors for the user. A message has four facts: who, what it got, what it expected, what to do."""

import difflib
import os
import shutil
from collections.abc import Iterable


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


def write_failed(directory: os.PathLike, error: Exception) -> SphinxError:
  """Returns the error for files that could not be written, with the cause and the free space."""
  first_line = (str(error).splitlines() or [''])[0]
  if 'No space left' in str(error):
    reason = 'no space left'
  else:
    reason = f'{type(error).__name__} {first_line}'[:300]
  try:
    reason += f', {shutil.disk_usage(directory).free:,} bytes free'
  except OSError:  # A bucket, or a directory that does not exist.
    pass
  return make(
    f"directory '{os.fspath(directory)}'",
    reason,
    'to write all of it',
    'make room; earlier saves are complete, and the same command resumes from them',
  )
