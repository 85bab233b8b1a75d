"""From a dataset's own files to records: what a family of datasets must say, and what is the same for all of them.

A family reads one layout and yields items: a picture and what the files say of it, in pixels. `Records` reads the picture,
brings the annotation onto the padded square and asks a task for the turns. Built datasets (prepare.py) are families too.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.data import geometry, images
from sphinx_jax.data.record import BadExample, Record, Source, check_too_long
from sphinx_jax.tasks import TASKS

_OURS = (
  'source',
  'weight',
  'root',
  'split',
  'task',
  'max_turns',
  'seed',
  'mirror',
  'too_long',
  'cap',
)


@dataclasses.dataclass(frozen=True)
class Item:
  """What a dataset says of one picture, or one text.

  Attributes:
    id: unique in its family.
    image: the file, its bytes, or None for text alone.
    annotation: the lists that tasks read (tasks/task.py), in pixels of the picture. With 'size' (width, height) it
      is in pixels of a picture of that size, which the file at hand may have another scale of.
  """

  id: str
  image: Path | bytes | None
  annotation: dict[str, Any]


class Family(Protocol):
  """One dataset, opened. Item i is the same each time it is asked for.

  Made as `Family(root, split, task, max_turns, **settings)`: root is the folder of its official tree, max_turns the most
  questions about one picture that an item may hold. What can be wrong with the files as a whole raises SphinxError there.
  A family of many alike files has PATTERN, theirs, and takes `files`, which of them (parts.py): each is a shard of a build.
  """

  TASKS: tuple[str, ...]  # that it can feed, the usual one first
  SPLITS: tuple[str, ...]  # that it knows, the usual one first

  def __len__(self) -> int: ...

  def item(self, index: int) -> Item:
    """Raises BadExample for one that cannot be used."""


class Records(Source):
  """The records of a family for one task.

  Args:
    family: opened.
    name: of the source, for messages.
    task: name in `TASKS`.
    max_turns: most turns a record.
    seed: a record is a function of (seed, index, epoch) and of the files.
    mirror: share of the pictures shown mirrored; only where a task allows it.
    too_long: 'skip' or 'cut_text'.

  Attributes:
    dropped: reason -> number of boxes and keypoints left out of the records that were read.

  Raises:
    SphinxError: an unknown policy, or a mirror for a task that reads text in the picture.
  """

  def __init__(
    self,
    family: Family,
    name: str,
    task: str,
    max_turns: int = 1,
    seed: int = 0,
    mirror: float = 0.0,
    too_long: str = 'skip',
  ):
    check_too_long(too_long)
    if not 0 <= mirror <= 1 or (mirror and not TASKS[task].mirrors):
      raise errors.make(
        f"source '{name}'",
        f"mirror {mirror:g} for task '{task}'",
        'a share in [0, 1], of a task that does not read text in the picture',
        'set mirror to 0',
      )
    self.family, self.name, self.task, self.too_long = family, name, task, too_long
    self._max_turns, self._seed, self._mirror = max_turns, seed, mirror
    self.dropped: Counter = Counter()

  def __len__(self) -> int:
    return len(self.family)

  def __getitem__(self, index: int) -> Record:
    """Record `index` of the first epoch. Raises BadExample for one to be counted and skipped."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')  # ends plain iteration
    return self.read(index, 0)

  def read(self, index: int, epoch: int) -> Record:
    """Record `index` as an epoch has it: its wording, its mirroring, and which things of many are asked about."""
    rng = np.random.default_rng((self._seed, index, epoch))
    item = self.family.item(index)
    mirrored = bool(self._mirror) and rng.random() < self._mirror
    image = None if item.image is None else read_image(item.id, item.image)
    try:
      annotation = item.annotation if image is None else self._placed(item, image, mirrored)
      turns = TASKS[self.task].turns(annotation, rng, self._max_turns)
    except (
      AttributeError,
      KeyError,
      TypeError,
      ValueError,
    ) as error:  # Of a form that no one thought of.
      raise BadExample(
        'malformed annotation', f'{item.id}: {type(error).__name__} {error}'
      ) from error
    return Record(
      item.id,
      self.task,
      image,
      tuple((turn.instruction, turn.answer) for turn in turns),
      tuple(turn.truth for turn in turns),
      mirrored and image is not None,
    )

  def _placed(self, item: Item, image: bytes, mirrored: bool) -> dict:
    width, height = images.size(image)
    annotation = item.annotation
    if 'size' in annotation and tuple(annotation['size']) != (width, height):
      annotation = _rescaled(item, width, height)
    return geometry.on_square(annotation, width, height, mirrored, self._drop)

  def _drop(self, reason: str) -> None:
    self.dropped[reason] += 1


def open_records(family: type, entry: Mapping[str, Any], data_dir: str | Path | None) -> Records:
  """The source of a mixture entry {source, root, split?, task?, max_turns?, seed?, mirror?, too_long?, the family's own}.

  Args:
    family: the class.
    entry: root is the folder of the dataset, relative to data_dir.
    data_dir: of the run.

  Raises:
    SphinxError: an unknown task, split or setting; no such folder; what the family finds wrong.
  """
  name, task, max_turns = (
    entry['source'],
    entry.get('task') or family.TASKS[0],
    entry.get('max_turns', 1),
  )
  opened = open_family(
    family,
    name,
    Path(data_dir or '', entry.get('root') or ''),
    entry.get('split') or family.SPLITS[0],
    task,
    max_turns,
    {key: value for key, value in entry.items() if key not in _OURS},
  )
  return Records(
    opened,
    name,
    task,
    max_turns,
    entry.get('seed', 0),
    entry.get('mirror', 0.0),
    entry.get('too_long', 'skip'),
  )


def open_family(
  family: type,
  name: str,
  root: Path,
  split: str,
  task: str,
  max_turns: int = 1,
  settings: Mapping[str, Any] | None = None,
) -> Family:
  """Opens a family after checking what it is asked for. Raises SphinxError, naming the source."""
  check_family(family, name, root, split, task)
  try:
    return family(root, split, task, max_turns, **(settings or {}))
  except TypeError as error:
    if settings and any(f"'{key}'" in str(error) for key in settings):
      raise errors.make(
        f"source '{name}'",
        f'the settings {sorted(settings)}',
        'only settings it has',
        f'see its docstring ({error})',
      ) from error
    raise


def check_family(family: type, name: str, root: Path, split: str, task: str) -> None:
  """Raises SphinxError, naming the source, for a split or task that a family does not have, or a folder that is not there."""
  for kind, value, known in (('task', task, family.TASKS), ('split', split, family.SPLITS)):
    if value not in known:
      raise errors.unknown(f"{kind} of source '{name}'", value, known)
  if not root.exists():
    raise errors.make(
      f"source '{name}'",
      f'root {str(root)!r}, which is not there',
      'the folder of the dataset',
      'check root and data_dir',
    )


def read_image(name: str, image: Path | bytes) -> bytes:
  """The encoded picture of what has this name. Raises BadExample ('missing image', 'empty image')."""
  try:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
  except (OSError, ValueError) as error:
    raise BadExample('missing image', f'{name}: {error}') from error
  if not data:
    raise BadExample(
      'empty image', f'{name}: {image if isinstance(image, Path) else "a picture"} has 0 bytes'
    )
  return data


def _rescaled(item: Item, width: int, height: int) -> dict:
  """The annotation in pixels of the picture at hand, which is a scaled copy of the one annotated."""
  said_width, said_height = item.annotation['size']
  if (
    min(said_width, said_height) <= 0
    or abs(width * said_height - height * said_width) > 0.02 * width * said_height
  ):
    raise BadExample(
      'image of another shape',
      f'{item.id}: {width} x {height} pixels, annotated for {said_width} x {said_height}',
    )
  return geometry.scaled(item.annotation, width / said_width, height / said_height)


def chunks(groups: Iterable[Sequence[Any]], limit: int) -> Iterator[Sequence[Any]]:
  """Cuts the questions of each picture into pieces of at most `limit`, so that one epoch asks all of them."""
  for group in groups:
    yield from (group[begin : begin + limit] for begin in range(0, len(group), limit))


def grouped(rows: Iterable[Any], key: Any) -> list[list[Any]]:
  """Rows with one key together, in the order of the first of each."""
  groups: dict[Any, list[Any]] = {}
  for row in rows:
    groups.setdefault(key(row), []).append(row)
  return list(groups.values())
