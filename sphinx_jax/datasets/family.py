"""Dataset families: their base class, and the records that a task makes of their items.

A family reads one directory tree and yields items: images and an annotation in pixels. `Records`
reads the images, moves the annotation onto the padded square and asks a task for the turns. A
prepared dataset (array_record.py) is a family too.
"""

import abc
import dataclasses
import inspect
import math
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.data import geometry, images
from sphinx_jax.data.record import BadExample, Record, Source, Unread, check_too_long
from sphinx_jax.datasets import entries, files as files_lib
from sphinx_jax.tasks import TASKS

# Keys of a mixture entry of every family, besides the family's own settings.
_ENTRY_KEYS = ('root', 'split', 'task', 'seed', 'mirror', 'too_long')
_ASPECT_TOLERANCE = 0.02  # Relative difference of aspect ratios that a resized copy may have.


@dataclasses.dataclass(frozen=True)
class Item:
  """One image, several or none, with an annotation.

  Attributes:
    id: unique in its family.
    images: the file or the bytes of each; in an outline, also how to read it.
    annotation: the lists that tasks read (tasks/task.py), in pixels of the only image; coordinates
      have no meaning for several. With 'size' (width, height), in pixels of an image of that size,
      of which the file may be a resized copy. With 'marks', what `<image>` in the turns is
      (record.MARKS).
  """

  id: str
  images: tuple[Path | bytes | Unread, ...]
  annotation: dict[str, Any]


class Family(abc.ABC):
  """One dataset, opened for a split and a task. Item i is the same each time it is read.

  A subclass sets the class attributes and implements `_open`, `__len__` and `item`. The
  keyword-only arguments of `_open` are the family's own settings.

  Args:
    root: root of the dataset's tree.
    split: name in SPLITS. '' means the usual one.
    task: name in TASKS. '' means the usual one.
    max_turns: the largest number of questions about one image in an item.
    settings: the family's own settings.

  Attributes:
    NAME: key in `datasets.FAMILIES`.
    TASKS: tasks that the dataset has annotations for, the usual one first.
    SPLITS: names of the splits, the usual one first. None: any name, checked by `_open`.
    PATTERN: glob pattern of the files, if the dataset consists of many files of one kind. The
      family then has a setting `files`, and `prepare` writes one shard for each file.
    broken: path -> reason, of the files that could not be read completely.

  Raises:
    SphinxError: unknown split, task or setting; missing root; a file that is unusable as a whole.
  """

  NAME: str
  TASKS: tuple[str, ...]
  SPLITS: tuple[str, ...] | None
  PATTERN: str | None = None

  broken: Mapping[str, str] = types.MappingProxyType({})

  def __init__(
    self, root: Path, split: str = '', task: str = '', max_turns: int = 1, **settings: Any
  ) -> None:
    self.root = Path(root)
    self.split = split or self.default_split()
    self.task = task or self.TASKS[0]
    self.max_turns = max_turns
    self.check(self.root, self.split, self.task, settings)
    self._open(**settings)

  @abc.abstractmethod
  def _open(self) -> None:
    """Reads the files that are needed before the first item. Raises SphinxError."""

  @abc.abstractmethod
  def __len__(self) -> int:
    """The number of items."""

  @abc.abstractmethod
  def item(self, index: int) -> Item:
    """Returns item `index`. Raises BadExample for one that cannot be used."""

  def outline(self, index: int) -> Item:
    """Returns `item(index)`, of which images may be unread. Raises as `item`."""
    return self.item(index)

  @classmethod
  def default_split(cls) -> str:
    """The usual split, '' if the family accepts any name."""
    return cls.SPLITS[0] if cls.SPLITS else ''

  @classmethod
  def settings(cls) -> tuple[str, ...]:
    """Names of the family's own settings."""
    parameters = inspect.signature(cls._open).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

  @classmethod
  def check(cls, root: Path, split: str, task: str, settings: Mapping[str, Any]) -> None:
    """Raises SphinxError for an unknown split, task or setting, or if root does not exist."""
    if task not in cls.TASKS:
      raise errors.unknown(f"task of source '{cls.NAME}'", task, cls.TASKS)
    if cls.SPLITS is not None and split not in cls.SPLITS:
      raise errors.unknown(f"split of source '{cls.NAME}'", split, cls.SPLITS)
    for name in settings:
      if not cls.settings():
        raise cls._error(f"the setting '{name}'", 'no settings', 'remove it')
      if name not in cls.settings():
        raise errors.unknown(f"setting of source '{cls.NAME}'", name, cls.settings())
    if not root.exists():
      raise cls._error(
        f'root {str(root)!r}, which does not exist',
        'the root directory of the dataset',
        'check root and data_dir',
      )

  @classmethod
  def settings_per_file(cls, root: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings that open one file each, for a family with PATTERN."""
    paths = cls._list_files(root, settings.get('files', ''))
    names = ['' if path == root else [path.relative_to(root).as_posix()] for path in paths]
    return [{**settings, 'files': name} for name in names]

  @classmethod
  def _who(cls) -> str:
    return f"source '{cls.NAME}'"

  @classmethod
  def _error(cls, got: str, expected: str, do: str) -> errors.SphinxError:
    return errors.make(cls._who(), got, expected, do)

  @classmethod
  def _list_files(cls, root: Path, files: str | Sequence[str]) -> list[Path]:
    return files_lib.list_files(cls._who(), root, files, cls.PATTERN)

  def _find(self, *choices: str) -> Path:
    return files_lib.find(self._who(), self.root, *choices)

  def _read_json(
    self, path: Path, kind: type = object, hook: Callable[[dict], Any] | None = None
  ) -> Any:
    return files_lib.read_json(self._who(), path, kind, hook)

  def _read_json_list(
    self, path: Path, key: str, hook: Callable[[dict], Any] | None = None
  ) -> list[Any]:
    return files_lib.read_json_list(self._who(), path, key, hook)


class Records(Source):
  """The records of a family.

  Args:
    family: an opened family.
    seed: a record is a function of (seed, index, epoch) and of the files.
    mirror: share of the images that are shown mirrored. Only for a task that allows it.
    too_long: 'skip' or 'cut_text'.

  Raises:
    SphinxError: unknown policy, or a mirror for a task that reads text in the image.
  """

  def __init__(
    self, family: Family, seed: int = 0, mirror: float = 0.0, too_long: str = 'skip'
  ) -> None:
    check_too_long(too_long)
    self.family, self.name, self.task, self.too_long = family, family.NAME, family.task, too_long
    if not 0 <= mirror <= 1 or (mirror and not TASKS[self.task].mirrors):
      raise errors.make(
        f"source '{self.name}'",
        f"mirror {mirror:g} for task '{self.task}'",
        'a share in [0, 1], of a task that does not read text in the image',
        'set mirror to 0',
      )
    self._seed, self._mirror = seed, mirror
    self.dropped: Counter[str] = Counter()

  def __len__(self) -> int:
    return len(self.family)

  def __getitem__(self, index: int) -> Record:
    """Returns record `index` of the first epoch. Raises BadExample."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')  # Ends iteration.
    return self.read(index, 0)

  def read(self, index: int, epoch: int) -> Record:
    """Returns record `index` as it is shown in an epoch.

    The epoch chooses the wording, the mirroring, and which of many objects are asked about.

    Raises:
      BadExample: the item cannot be used.
    """
    return self._make(self.family.item(index), index, epoch, files_lib.read_image)

  def outline(self, index: int, epoch: int) -> Record:
    """Returns what `read` returns. Of the file of an image, the head is read at most."""
    return self._make(self.family.outline(index), index, epoch, files_lib.leave_image)

  def _make(self, item: Item, index: int, epoch: int, image_of: files_lib.ImageOf) -> Record:
    rng = np.random.default_rng((self._seed, index, epoch))
    mirrored = bool(self._mirror) and rng.random() < self._mirror
    encoded = tuple(image_of(item.id, image) for image in item.images)
    try:
      annotation = item.annotation
      if len(encoded) == 1:
        annotation = self._on_square(item, encoded[0], mirrored)
      turns = TASKS[self.task].turns(annotation, rng, self.family.max_turns)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise BadExample(
        'malformed annotation', f'{item.id}: {type(error).__name__} {error}'
      ) from error
    return Record(
      id=item.id,
      task=self.task,
      images=encoded,
      turns=tuple((turn.instruction, turn.answer) for turn in turns),
      truth=tuple(turn.truth for turn in turns),
      mirrored=mirrored and bool(encoded),
      marks=item.annotation.get('marks', 'text'),
    )

  def _on_square(self, item: Item, image: bytes | Unread, mirrored: bool) -> dict[str, Any]:
    annotation = item.annotation
    if isinstance(image, Unread) and not geometry.has_coordinates(annotation):
      return geometry.on_square(annotation, 1, 1, mirrored)
    width, height = image.size() if isinstance(image, Unread) else images.size(image)
    if 'size' in annotation and tuple(annotation['size']) != (width, height):
      annotation = _rescale(item, width, height)
    return geometry.on_square(annotation, width, height, mirrored, self._drop)

  def _drop(self, reason: str) -> None:
    self.dropped[reason] += 1


def open_records(
  family: type[Family], entry: Mapping[str, Any], data_dir: str | Path | None
) -> Records:
  """Opens the source of a mixture entry.

  Args:
    family: the class.
    entry: {source, root, split?, task?, max_turns?, seed?, mirror?, too_long?, the family's own
      settings}. root is the root of the dataset, relative to data_dir.
    data_dir: root of all datasets of the run.

  Raises:
    SphinxError: unknown task, split or setting; missing root; unusable files.
  """
  entries.check(entry, family.NAME, required=(), optional=(*family.settings(), *_ENTRY_KEYS))
  settings = {key: entry[key] for key in entry if key in family.settings()}
  opened = family(
    Path(data_dir or '', entry.get('root') or ''),
    entry.get('split') or '',
    entry.get('task') or '',
    entry.get('max_turns', 1),
    **settings,
  )
  return Records(
    opened,
    seed=entry.get('seed', 0),
    mirror=entry.get('mirror', 0.0),
    too_long=entry.get('too_long', 'skip'),
  )


def _rescale(item: Item, width: int, height: int) -> dict[str, Any]:
  """The annotation in pixels of the image file, which is a resized copy of the annotated image."""
  annotated_width, annotated_height = item.annotation['size']
  difference = abs(width * annotated_height - height * annotated_width)
  if (
    not all(0 < side < math.inf for side in (annotated_width, annotated_height))
    or difference > _ASPECT_TOLERANCE * width * annotated_height
  ):
    raise BadExample(
      'image of another shape',
      f'{item.id}: {width} x {height} pixels, annotated for {annotated_width} x {annotated_height}',
    )
  return geometry.scaled(item.annotation, width / annotated_width, height / annotated_height)
