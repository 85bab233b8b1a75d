"""What `python -m sphinx_jax.prepare` wrote: any dataset family as array_record, quick to open and to read in any order.

    root/build.json                                     what was built of what, and what was counted
    root/dataset_info.json, features.json               TFDS's own (tfds.builder_from_directory(root))
    root/NAME-SPLIT.array_record-00000-of-00012 ...

The licence is that of the dataset that was built.
"""

import json
from pathlib import Path

from sphinx_jax.core import errors, tensorflow as quiet_tensorflow
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Item
from sphinx_jax.tasks import TASKS


class _AnyName(tuple):
  """Splits are named by what was built."""

  def __contains__(self, name: object) -> bool:
    return isinstance(name, str)


class Built:
  """A split of a built dataset, for the task it was built for; a split of '' is the only one there is."""

  TASKS, SPLITS = tuple(TASKS), _AnyName([''])

  def __init__(self, root: Path, split: str, task: str, max_turns: int):
    del max_turns  # As built.
    known = _read(root)
    if task != known['identity'].get('task'):
      raise errors.make(
        f"source 'built' in {str(root)!r}",
        f"task '{task}'",
        f"'{known['identity'].get('task')}', as it was built",
        'name that task, or build it for this one',
      )
    splits = {name: each for name, each in known['splits'].items() if each.get('finished')}
    if split not in splits and not (split == '' and len(splits) == 1):
      raise errors.unknown(f"finished split of 'built' in {str(root)!r}", split, splits)
    self._rows = _open(root, splits[split] if split else next(iter(splits.values())))

  def __len__(self) -> int:
    return len(self._rows)

  def item(self, index: int) -> Item:
    """Raises BadExample ('damaged record')."""
    try:
      row = self._rows[index]
      annotation = json.loads(row['annotation'])
      if not isinstance(annotation, dict):
        raise ValueError(f'the annotation is a {type(annotation).__name__}')
      return Item(row['id'].decode(), row['image'] or None, annotation)
    except (OSError, ValueError, KeyError, RuntimeError, RecursionError) as error:
      raise BadExample('damaged record', f'record {index}: {error}') from error


def _read(root: Path) -> dict:
  try:
    known = json.loads((root / 'build.json').read_bytes())
    (
      known['identity'].get('task'),
      {name: each['finished'] for name, each in known['splits'].items()},
    )
    return known
  except OSError as error:
    raise errors.make(
      "source 'built'",
      f'no build.json in {str(root)!r}',
      'the output of sphinx_jax.prepare',
      'check root',
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise errors.make(
      "source 'built'",
      f'a damaged build.json in {str(root)!r} ({error})',
      'the output of sphinx_jax.prepare',
      'build it again',
    ) from error


def _open(root: Path, split: dict):
  """Random access to the rows of a split, pictures left as they are."""
  quiet_tensorflow.load()
  import tensorflow_datasets as tfds  # Takes a second: only who reads such data pays.

  try:
    builder = tfds.builder_from_directory(root)
    info = builder.info.splits[split['name']]
    wanted, lengths = info.filenames, list(info.shard_lengths)
    rows = builder.as_data_source(split['name'], decoders={'image': tfds.decode.SkipDecoding()})
  except Exception as error:  # Of damaged metadata; TFDS, protobuf and JSON raise their own.
    raise errors.make(
      "source 'built'",
      f'{type(error).__name__} on opening {str(root)!r}: {" ".join(str(error).split())}',
      'a whole build',
      'build it again',
    ) from error
  if lengths != split.get('lengths'):
    raise errors.make(
      "source 'built'",
      f'other numbers of records in dataset_info.json than in build.json of {str(root)!r}',
      'the same',
      'build it again',
    )
  there = {path.name for path in root.iterdir()}
  missing = [name for name in wanted if name not in there]
  if missing:
    raise errors.make(
      "source 'built'",
      f'{len(missing)} of {len(wanted)} shards are not in {str(root)!r} ({missing[0]}, ...)',
      'all',
      'copy them, or build again',
    )
  return rows
