"""What a build is, and the shards that it consists of.

A build writes one split of a dataset family as sharded array_record. A shard is a pure function of
the build and of a range of items or one file, so any process can write any shard at any time.
"""

import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from etils import epath

from sphinx_jax.core import errors, renames
from sphinx_jax.datasets import FAMILIES
from sphinx_jax.datasets.array_record import outlines_name
from sphinx_jax.datasets.family import Family

BUILD_FILE = 'build.json'
PROGRESS_DIR = '.building'  # Reports of the finished shards of an unfinished split.


@dataclasses.dataclass(frozen=True)
class Build:
  """One split of a dataset, to be written into a folder.

  Attributes:
    source: name in datasets.FAMILIES.
    root: root directory of the dataset files.
    split: the dataset's own name of the split.
    task: task of the records.
    output: output folder, local or anything that etils.epath can write (gs://).
    name: name of the TFDS dataset.
    max_turns: the largest number of questions about one image in a record.
    settings: the family's own settings, as the text of a JSON object.
    shard_size: items per shard, for a family without one shard per file.
  """

  source: str
  root: str
  split: str
  task: str
  output: str
  name: str
  max_turns: int = 1
  settings: str = '{}'
  shard_size: int = 2000

  def identity(self) -> dict[str, Any]:
    """The values that must be equal for all splits in a folder."""
    keys = ('source', 'root', 'task', 'max_turns', 'settings', 'name')
    return {key: getattr(self, key) for key in keys}

  @property
  def split_name(self) -> str:
    """The split's name as TFDS accepts it."""
    return re.sub(r'\W', '_', self.split)


@dataclasses.dataclass(frozen=True)
class Shard:
  """One shard of a build.

  Attributes:
    number: number of the shard, from 0.
    count: number of shards of the split.
    settings: settings of the family that holds the shard's items, as the text of a JSON object.
    begin: first item.
    end: the item after the last one. None: all items of that family.
  """

  number: int
  count: int
  settings: str
  begin: int = 0
  end: int | None = None


def make_build(
  source: str,
  root: str,
  output: str,
  split: str = '',
  task: str = '',
  max_turns: int = 1,
  settings: dict[str, Any] | None = None,
  name: str = '',
  shard_size: int = 2000,
) -> Build:
  """Returns a Build, with the family's defaults for an empty split, task or name.

  Raises:
    SphinxError: an unknown source, or a name that TFDS does not accept.
  """
  source = renames.source(source)
  family = FAMILIES[source]
  name = name or source.replace('+', '_plus')
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
    raise errors.make(
      'name',
      repr(name),
      'small letters, digits and _, because TFDS accepts nothing else',
      'choose another name',
    )
  if source == 'array_record':
    raise errors.make(
      'source',
      "'array_record', which is a prepared dataset",
      'a dataset in the form of its authors',
      'copy the folder',
    )
  return Build(
    source=source,
    root=str(root),
    split=split or family.default_split(),
    task=task or family.TASKS[0],
    output=str(output),
    name=name,
    max_turns=max_turns,
    settings=json.dumps(settings or {}, sort_keys=True),
    shard_size=shard_size,
  )


def plan_shards(build: Build) -> list[Shard]:
  """Returns the shards of a build.

  A family of many files (one with PATTERN) has one shard per file, any other has ranges of
  `shard_size` items.

  Raises:
    SphinxError: the family cannot be opened.
  """
  family = FAMILIES[build.source]
  root, settings = Path(build.root), json.loads(build.settings)
  family.check(root, build.split, build.task, settings)
  if family.PATTERN is not None:
    parts = [json.dumps(part, sort_keys=True) for part in family.settings_per_file(root, settings)]
    return [Shard(number, len(parts), part) for number, part in enumerate(parts)]
  items = len(open_family(build, build.settings))
  begins = range(0, items, build.shard_size)
  return [
    Shard(number, len(begins), build.settings, begin, min(begin + build.shard_size, items))
    for number, begin in enumerate(begins)
  ]


@functools.lru_cache(1)
def open_family(build: Build, settings: str) -> Family:
  """Opens the build's family with settings (JSON). The last one stays open.

  Raises:
    SphinxError: the family cannot be opened.
  """
  family = FAMILIES[build.source]
  return family(Path(build.root), build.split, build.task, build.max_turns, **json.loads(settings))


def shard_path(build: Build, shard: Shard) -> epath.Path:
  """The file of a shard, with the name that TFDS expects."""
  stem = f'{build.name}-{build.split_name}.array_record'
  return epath.Path(build.output) / f'{stem}-{shard.number:05d}-of-{shard.count:05d}'


def outlines_path(shard_file: epath.Path) -> epath.Path:
  """The file of a shard's outlines, beside the shard."""
  return shard_file.parent / outlines_name(shard_file.name)


def digest(shards: list[Shard]) -> str:
  """A short hash that identifies a list of shards."""
  text = json.dumps([dataclasses.astuple(shard) for shard in shards])
  return hashlib.sha256(text.encode()).hexdigest()[:16]
