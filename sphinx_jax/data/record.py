"""What a source yields before tokenization, and how it says that one example is bad."""

from __future__ import annotations

import abc
import dataclasses
import types
from collections.abc import Mapping

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


class Source(abc.ABC):
  """Random access to records. Record i is the same each time it is asked for.

  Attributes:
    name: shown in messages.
    too_long: policy for an example that does not fit into a row, one of `TOO_LONG`.
    dropped: reason -> number of boxes and keypoints that were left out of the records read so far.
  """

  name: str
  too_long: str = 'skip'
  dropped: Mapping[str, int] = types.MappingProxyType({})

  @abc.abstractmethod
  def __len__(self) -> int:
    """The number of records."""

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Record:
    """Returns record `index`. Raises BadExample for one that is counted and skipped."""

  def read(self, index: int, epoch: int) -> Record:
    """Returns record `index` as it is shown in an epoch.

    Override it if the wording of a record, or what it asks, differs between epochs. `read(i, 0)`
    must equal `self[i]`.
    """
    del epoch
    return self[index]
