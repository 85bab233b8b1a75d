"""Every error of the package says four things: who complains, what it got, what it expected, and what to do."""

import difflib
import os
import shutil
from collections.abc import Iterable


class SphinxError(ValueError):
  """An error whose message is meant for the user: doors print it as one line, without a traceback."""


def make(who: str, got: str, expected: str, do: str) -> SphinxError:
  """The error `who: got ..., expected ...; do`, to be raised by the caller."""
  return SphinxError(f'{who}: got {got}, expected {expected}; {do}')


def unknown(kind: str, name: str, choices: Iterable[str]) -> SphinxError:
  """The error for a name that is not in a table: lists the choices and the nearest match."""
  choices = sorted(choices)
  near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
  advice = f"did you mean '{near[0]}'?" if near else 'choose one of them'
  return make(
    kind, f"'{name}'", f'one of {", ".join(choices) or "nothing (the table is empty)"}', advice
  )


def unwritten(place: os.PathLike, error: Exception) -> SphinxError:
  """The error for files that could not be written: names the directory, the reason, and the bytes that are free there."""
  text = (str(error).splitlines() or [''])[0]
  reason = (
    'no space left' if 'No space left' in str(error) else f'{type(error).__name__} {text}'[:300]
  )
  try:
    reason += f', {shutil.disk_usage(place).free:,} bytes free'
  except OSError:  # A bucket, or a directory that is not there.
    pass
  return make(
    f"directory '{os.fspath(place)}'",
    reason,
    'to write all of it',
    'make room; what was saved before is whole, and the same command goes on from it',
  )
