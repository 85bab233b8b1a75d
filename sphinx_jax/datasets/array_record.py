"""Datasets prepared by `python -m sphinx_jax.prepare`: any family as array_record files.

They open quickly and can be read in any order.

    root/build.json                             what was prepared, and the counts
    root/dataset_info.json, features.json       of TFDS (tfds.builder_from_directory(root))
    root/NAME-SPLIT.array_record-00000-of-00012 ...
    root/NAME-SPLIT.00000-of-00012.outlines ...     the records without images; absent in old ones

The licence is that of the prepared dataset.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample, Unread
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.files import record_opened
from sphinx_jax.tasks import TASKS


class ArrayRecord(Family):
  """A split of a prepared dataset, for the task it was prepared for.

  The splits have the names they were prepared under. The split '' is the only one.
  """

  NAME = 'array_record'
  TASKS = tuple(TASKS)
  SPLITS = None

  def _open(self) -> None:
    build = self._read_build()
    prepared_task = build['identity']['task']
    if self.task != prepared_task:
      raise self._error(
        f"task '{self.task}' in {str(self.root)!r}",
        f"'{prepared_task}', as it was prepared",
        'name that task, or prepare the dataset for this one',
      )
    finished = {name: split for name, split in build['splits'].items() if split['finished']}
    name = self.split
    if name == '' and len(finished) == 1:
      (name,) = finished
    if name not in finished:
      raise errors.unknown(f'finished split of {self._who()} in {str(self.root)!r}', name, finished)
    self._rows, self._outlines = self._open_rows(finished[name])

  def __len__(self) -> int:
    return len(self._rows)

  def item(self, index: int) -> Item:
    """Raises BadExample ('damaged record')."""
    try:
      row = self._rows[index]
      annotation = json.loads(row['annotation'])
      if not isinstance(annotation, dict):
        raise ValueError(f'the annotation is a {type(annotation).__name__}')
      return Item(row['id'].decode(), _images(row), annotation)
    except (OSError, ValueError, KeyError, RuntimeError, RecursionError) as error:
      raise BadExample('damaged record', f'record {index}: {error}') from error

  def outline(self, index: int) -> Item:
    """Returns item `index`, whose images are read with its record. Raises as `item`."""
    if self._outlines is None:
      return self.item(index)
    try:
      outline = self._outlines[index]
      if not outline:  # It has no images.
        return self.item(index)
      outline = json.loads(outline)
      images = tuple(
        Unread(functools.partial(self._image, index, number), functools.partial(tuple, size))
        for number, size in enumerate(outline['sizes'])
      )
      return Item(outline['id'], images, outline['annotation'])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
      raise BadExample('damaged record', f'outline {index}: {error}') from error

  def _image(self, index: int, number: int) -> bytes:
    return self.item(index).images[number]

  def _read_build(self) -> dict[str, Any]:
    """build.json as {'identity': {'task'}, 'splits': {name: {'name', 'finished', 'lengths'}}}."""
    try:
      build = json.loads((self.root / 'build.json').read_bytes())
      splits = {
        name: {
          'name': split.get('name'),
          'finished': bool(split['finished']),
          'lengths': split.get('lengths'),
        }
        for name, split in build['splits'].items()
      }
      return {'identity': {'task': build['identity'].get('task')}, 'splits': splits}
    except OSError as error:
      raise self._error(
        f'no build.json in {str(self.root)!r}', 'the output of sphinx_jax.prepare', 'check root'
      ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise self._error(
        f'a damaged build.json in {str(self.root)!r} ({error})',
        'the output of sphinx_jax.prepare',
        'prepare it again',
      ) from error

  def _open_rows(self, split: dict[str, Any]) -> tuple[Any, Any]:
    """Random access to the rows of a split, whose images stay encoded, and to their outlines.

    There are None in datasets of older versions.
    """
    import tensorflow_datasets as tfds  # Takes a second, so only if it is needed.
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
      builder = tfds.builder_from_directory(self.root)
      info = builder.info.splits[split['name']]
      shards, lengths = info.filenames, list(info.shard_lengths)
      rows = builder.as_data_source(split['name'], decoders={'image': tfds.decode.SkipDecoding()})
    except Exception as error:  # TFDS, protobuf and JSON each raise their own for damaged metadata.
      raise self._error(
        f'{type(error).__name__} on opening {str(self.root)!r}: {" ".join(str(error).split())}',
        'a complete prepared dataset',
        'prepare it again',
      ) from error
    if lengths != split['lengths']:
      raise self._error(
        f'other numbers of records in dataset_info.json than in build.json of {str(self.root)!r}',
        'equal numbers',
        'prepare it again',
      )
    present = {path.name for path in self.root.iterdir()}
    missing = [name for name in shards if name not in present]
    if missing:
      raise self._error(
        f'{len(missing)} of {len(shards)} shards are not in {str(self.root)!r} ({missing[0]}, ...)',
        'all shards',
        'copy them, or prepare it again',
      )
    names = [outlines_name(name) for name in shards]
    outlines = None
    if present.issuperset(names):
      try:
        outlines = ArrayRecordDataSource([str(self.root / name) for name in names])
        if len(outlines) != len(rows):
          raise ValueError(f'{len(outlines)} of {len(rows)} records')
      except (OSError, ValueError, RuntimeError) as error:
        raise self._error(
          f'damaged outlines in {str(self.root)!r} ({error})',
          'those of its shards',
          'delete *.outlines, or prepare it again',
        ) from error
      shards = [*shards, *names]
    record_opened(*(self.root / name for name in shards))
    return rows, outlines


def outlines_name(shard: str) -> str:
  """Name of the file of a shard's outlines, which TFDS does not take for a shard."""
  return shard.replace('.array_record-', '.') + '.outlines'


def _images(row: Mapping[str, Any]) -> tuple[bytes, ...]:
  """The images of a row. Datasets of older versions have one at most."""
  first = (row['image'],) if row['image'] else ()
  return (*first, *row.get('more_images', ()))
