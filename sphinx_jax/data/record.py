"""What a source yields before tokenization, and how it says that one example is bad."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

from sphinx_jax.core import errors

TOO_LONG = ('skip', 'cut_text')


@dataclasses.dataclass(frozen=True)
class Record:
  """One example: a picture (or none) and a dialog about it.

  id: unique inside its source, task: name in `TASKS`, image: encoded file (PNG, JPEG) or None,
  turns: (instruction, answer) pairs, truth: one dict per turn, what the task's metric needs; mirrored: whether the picture is
  to be shown left for right (turns and truth speak of the mirrored one).
  """

  id: str
  task: str
  image: bytes | None
  turns: tuple[tuple[str, str], ...]
  truth: tuple[dict, ...]
  mirrored: bool = False


def check_too_long(policy: str) -> None:
  """Raises SphinxError unless it is a policy for examples that no row can hold: left out, or their text is cut."""
  if policy not in TOO_LONG:
    raise errors.unknown('too_long policy', policy, TOO_LONG)


class BadExample(Exception):
  """Raised by `Source.__getitem__` for an example to be counted and skipped.

  reason: a short name that is counted ("no turns"), message: the whole story for the log.
  """

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason
    self.message = message

  def __reduce__(self):
    return BadExample, (self.reason, self.message)


@runtime_checkable
class Source(Protocol):
  """Random access to records; record i is the same each time it is asked for.

  A source may also have `read(index, epoch)`, where the wording of a record and what it asks may differ between epochs.
  """

  name: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...
