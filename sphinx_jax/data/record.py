"""Records: what a source yields before tokenization. Also the error of a bad example."""

import abc
import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping

from sphinx_jax.core import errors, text

# Policies for an example that does not fit into a row: skip it, or cut the end of its text.
TOO_LONG = ('skip', 'cut_text')

MARK = '<image>'
# What MARK in the turns of a record is: text, the place of an image that a dialog may leave unused
# because its single image comes first ('loose'), or the place of an image in any dialog ('inline').
MARKS = ('text', 'loose', 'inline')


@dataclasses.dataclass(frozen=True)
class Unread:
  """An image that is read by the host that shows it.

  Attributes:
    read: returns the encoded file. Raises BadExample.
    size: returns (width, height) in pixels without the whole file. Raises BadExample.
  """

  read: Callable[[], bytes]
  size: Callable[[], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Record:
  """One example: images and a dialog about them.

  Attributes:
    id: unique in its source.
    task: name in tasks.TASKS.
    images: encoded files (PNG, JPEG, ...), any number. Those of an outline may be unread.
    turns: (instruction, answer) pairs. Images without a place in them stand before everything.
    truth: what the task's metric needs, one dict per turn.
    mirrored: whether the images are to be flipped left to right. Turns and truth describe the
      flipped images.
    marks: what `<image>` in the turns is, one of `MARKS`.
    rejected: of a preference pair, an answer to the last question that is worse than that of the
      last turn.
  """

  id: str
  task: str
  images: tuple[bytes | Unread, ...]
  turns: tuple[tuple[str, str], ...]
  truth: tuple[dict, ...]
  mirrored: bool = False
  marks: str = 'text'
  rejected: str | None = None


def check_too_long(policy: str) -> None:
  """Raises SphinxError unless `policy` is one of TOO_LONG."""
  if policy not in TOO_LONG:
    raise errors.unknown('too_long policy', policy, TOO_LONG)


class BadExample(Exception):
  """Raised for an example that is counted and skipped.

  Attributes:
    reason: short name under which it is counted, for example 'no turns'.
    message: full description for the log.
  """

  def __init__(self, reason: str, message: str) -> None:
    super().__init__(message)
    self.reason = reason
    self.message = message

  def __reduce__(self) -> tuple[type, tuple[str, str]]:  # Pickle would pass the message alone.
    return BadExample, (self.reason, self.message)


def check_unicode(texts: Iterable[str | None]) -> None:
  """Raises BadExample for a text with half of a surrogate pair, which JSON may hold."""
  for content in texts:
    if content is not None and not text.is_unicode(content):
      raise BadExample('not unicode', f'{ascii(content[:60])} is not unicode')


class Source(abc.ABC):
  """Random access to records. Record i is the same each time it is asked for.

  Attributes:
    name: shown in messages.
    too_long: policy for an example that does not fit into a row, one of `TOO_LONG`.
    pairs: whether its records are preference pairs.
    dropped: reason -> number of boxes and keypoints that were left out of the records read so far.
    files: path -> size and hash of the files that define the records, without those of images.
  """

  name: str
  too_long: str = 'skip'
  pairs: bool = False
  dropped: Mapping[str, int] = types.MappingProxyType({})
  files: Mapping[str, str] = types.MappingProxyType({})

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

  def outline(self, index: int, epoch: int) -> Record:
    """Returns what `read` returns, for the packing of rows: images need not be read.

    Override it if images are read one by one. Every host packs all rows, so it must return the same
    on all of them: an image that cannot be used may be found here, or when it is read.
    """
    return self.read(index, epoch)
