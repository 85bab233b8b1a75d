"""A dataset family written as sharded array_record that TFDS reads: what a build is, one shard of it, and its end.

A shard is a pure function of (build, range or file), written under another name and renamed, so any process can write any
shard at any time and an interrupted build goes on. Annotations stay in pixels: the task makes its turns when they are read.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from sphinx_jax.core import errors, renames, tensorflow as quiet_tensorflow
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import FAMILIES
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.files import read_image

FILE = 'build.json'
DOING = '.building'  # Reports of the finished shards of an unfinished split.


@dataclasses.dataclass(frozen=True)
class Build:
  """What is built.

  Attributes:
    source: name in FAMILIES; root, split, task, max_turns: see `datasets.family.Family`.
    settings: of the family, as the text of a JSON object.
    output: folder, local or what etils.epath can write (gs://).
    name: of the TFDS dataset.
    shard: items in a shard, where the family has no files that are one each.
  """

  source: str
  root: str
  split: str
  task: str
  output: str
  name: str
  max_turns: int = 1
  settings: str = '{}'
  shard: int = 2000

  def identity(self) -> dict:
    """What must be the same for all splits in a folder."""
    return {
      key: getattr(self, key) for key in ('source', 'root', 'task', 'max_turns', 'settings', 'name')
    }


@dataclasses.dataclass(frozen=True)
class Shard:
  """Shard `number` of `count`: items begin to end of the family opened with `settings` (JSON); end is None for all."""

  number: int
  count: int
  settings: str
  begin: int = 0
  end: int | None = None


def make(
  source: str,
  root: str,
  output: str,
  split: str = '',
  task: str = '',
  max_turns: int = 1,
  settings: dict | None = None,
  name: str = '',
  shard: int = 2000,
) -> Build:
  """A Build with the family's own defaults. Raises SphinxError for unknown names and a name that TFDS does not take."""
  source = renames.source(source)
  family = FAMILIES[source]
  name = name or source.replace('+', '_plus')
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
    raise errors.make(
      'name', repr(name), 'small letters, digits and _, as TFDS takes them', 'choose another'
    )
  if source == 'array_record':
    raise errors.make('source', "'array_record'", 'the dataset itself', 'copy the folder')
  return Build(
    source,
    str(root),
    split or family.default_split(),
    task or family.TASKS[0],
    str(output),
    name,
    max_turns,
    json.dumps(settings or {}, sort_keys=True),
    shard,
  )


def plan(build: Build) -> list[Shard]:
  """The shards: one for each file of a family of many files (those with PATTERN), else ranges of items.

  Raises:
    SphinxError: the family cannot be opened.
  """
  family, settings = FAMILIES[build.source], json.loads(build.settings)
  if family.PATTERN is not None:
    root = Path(build.root)
    family.check(root, build.split, build.task, settings)
    parts = [json.dumps(part, sort_keys=True) for part in family.settings_per_file(root, settings)]
    return [Shard(number, len(parts), part) for number, part in enumerate(parts)]
  items = len(_opened(build, build.settings))
  ranges = [(begin, min(begin + build.shard, items)) for begin in range(0, items, build.shard)]
  return [Shard(number, len(ranges), build.settings, *both) for number, both in enumerate(ranges)]


@functools.lru_cache(1)
def _opened(build: Build, settings: str) -> Family:
  family = FAMILIES[build.source]
  return family(Path(build.root), build.split, build.task, build.max_turns, **json.loads(settings))


def features() -> Any:
  """Of a record: id, image (encoded as it was; empty for text alone), annotation (JSON), size (width, height; 0 for text)."""
  quiet_tensorflow.load()
  import numpy as np
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      'id': tfds.features.Text(),
      'image': tfds.features.Image(),
      'annotation': tfds.features.Text(),
      'size': tfds.features.Tensor(shape=(2,), dtype=np.int32),
    }
  )


def place(build: Build, shard: Shard) -> epath.Path:
  """The file of a shard, named as TFDS names it."""
  stem = f'{build.name}-{split_name(build.split)}.array_record'
  return epath.Path(build.output) / f'{stem}-{shard.number:05d}-of-{shard.count:05d}'


def split_name(split: str) -> str:
  """A split's name as TFDS takes it."""
  return re.sub(r'\W', '_', split)


def report_of(build: Build, shard: Shard) -> dict | None:
  """What was counted when the shard was written; None if it is not there as it was written."""
  report = epath.Path(build.output) / DOING / f'{shard.number:05d}.json'
  try:
    said = json.loads(report.read_text())
    return said if place(build, shard).stat().length == said['bytes'] else None
  except (OSError, ValueError):
    return None


def write(build: Build, shard: Shard, advance: Callable[[int], None] = lambda items: None) -> dict:
  """Writes a shard, unless it is there.

  Returns:
    {items, records, bytes, skipped: {reason: number}, first: {reason: message}, damaged: what the family says of its files}.
  """
  said = report_of(build, shard)
  if said is not None:
    return said
  target, local = place(build, shard), '://' not in build.output
  with tempfile.TemporaryDirectory(
    dir=build.output if local else None, prefix=f'{DOING}-'
  ) as folder:
    written = os.path.join(folder, 'shard')
    said = _write(build, shard, written, advance)
    said['bytes'] = os.path.getsize(written)
    os.replace(written, target) if local else epath.Path(written).copy(target, overwrite=True)
  save(target.parent / DOING / f'{shard.number:05d}.json', said)
  return said


def save(path: epath.Path, value: Any) -> None:
  """Writes JSON, whole or not at all."""
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  partial.write_text(json.dumps(value, indent=1))
  partial.replace(path)


def _write(build: Build, shard: Shard, path: str, advance: Callable[[int], None]) -> dict:
  from array_record.python.array_record_module import ArrayRecordWriter

  serialized, writer = (
    _serializer(),
    ArrayRecordWriter(path, 'group_size:1'),
  )  # As TFDS and Grain read it best.
  skipped, first, records, begin, end, damaged = Counter(), {}, 0, 0, 0, {}
  try:
    family = _opened(build, shard.settings)
    damaged = dict(family.broken)
    begin, end = shard.begin, len(family) if shard.end is None else shard.end
  except errors.SphinxError as error:
    if shard.end is not None:
      raise
    damaged = {'': str(error)}  # One file of many: the others go on.
  for index in range(begin, end):
    try:
      writer.write(serialized(_record(family.item(index))))
      records += 1
    except BadExample as bad:
      skipped[bad.reason] += 1
      first.setdefault(bad.reason, bad.message)
    advance(1)
  writer.close()
  return {
    'items': end - begin,
    'records': records,
    'skipped': dict(skipped),
    'first': first,
    'damaged': damaged,
  }


@functools.cache
def _serializer() -> Callable[[dict], bytes]:
  made, example = features(), quiet_tensorflow.load().train.Example

  # The order of features in an Example is free, and TFDS's serializer gives another one in every process.
  def serialized(record: dict) -> bytes:
    return example.FromString(
      made.serialize_example(made.encode_example(record))
    ).SerializeToString(deterministic=True)

  return serialized


def _record(item: Item) -> dict:
  """Raises BadExample for a picture that cannot be decoded: a build looks at all of it, so that training need not fail."""
  data, size = b'', (0, 0)
  if item.image is not None:
    data = read_image(item.id, item.image)
    height, width = images.decode(data).shape[:2]
    size = width, height
  return {
    'id': item.id.encode('utf-8', 'backslashreplace').decode(),
    'image': io.BytesIO(data),
    'size': size,
    'annotation': json.dumps(item.annotation, default=lambda value: value.tolist()),
  }


def digest(shards: list[Shard]) -> str:
  """Tells one plan from another."""
  return hashlib.sha256(
    json.dumps([dataclasses.astuple(shard) for shard in shards]).encode()
  ).hexdigest()[:16]
