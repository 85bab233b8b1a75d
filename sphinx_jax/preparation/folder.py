"""The folder of a build: whose it is, what is finished in it, and that its numbers are right."""

import contextlib
import io
import json
from collections import Counter

from etils import epath

from sphinx_jax.core import errors
from sphinx_jax.preparation import write as building
from sphinx_jax.preparation.write import Build, Shard


def claim(build: Build, shards: list[Shard]) -> dict | None:
  """Begins or goes on with a split in the folder.

  Returns:
    What `finish` returned, if the split is finished; else None.

  Raises:
    SphinxError: the folder holds something else, another build, the split of other files, or another unfinished split.
  """
  folder = epath.Path(build.output)
  known = read(folder)
  if known is None:
    if folder.exists() and any(folder.iterdir()):
      raise _refused(
        folder, 'files that are no build', 'an empty folder, or a build', 'name another folder'
      )
    (folder / building.DOING).mkdir(parents=True, exist_ok=True)
    known = {'identity': build.identity(), 'splits': {}}
  for key, value in build.identity().items():
    if known['identity'].get(key) != value:
      raise _refused(
        folder,
        f'a build of {key} {known["identity"].get(key)!r}',
        f'{value!r}',
        'name another folder, or delete this one',
      )
  split = known['splits'].get(build.split)
  if split and split['plan'] != building.digest(shards):
    raise _refused(
      folder,
      f"split '{build.split}' begun with other files or another --shard",
      f'{len(shards)} shards as now',
      'give the same ones, or delete the folder',
    )
  if split and split['finished']:
    _check_files(build, split)
    return split
  others = [
    name for name, other in known['splits'].items() if not other['finished'] and name != build.split
  ]
  if others:
    raise _refused(
      folder,
      f"the unfinished split '{others[0]}'",
      'one split at a time',
      'finish that one first, by its own command',
    )
  known['splits'][build.split] = {
    'name': building.split_name(build.split),
    'plan': building.digest(shards),
    'finished': False,
  }
  (folder / building.DOING).mkdir(parents=True, exist_ok=True)
  building.save(folder / building.FILE, known)
  return None


def read(folder: epath.Path) -> dict | None:
  """What build.json says, None where there is none. Raises SphinxError if it is damaged."""
  path = epath.Path(folder) / building.FILE
  if not path.exists():
    return None
  try:
    known = json.loads(path.read_text())
    known['identity'].items(), known['splits'].items()
    return known
  except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise _refused(
      folder,
      f'a damaged {building.FILE} ({error})',
      'what a build wrote',
      'build again, into an empty folder',
    ) from error


def finish(build: Build, shards: list[Shard]) -> dict:
  """Verifies all shards and writes what TFDS needs to read them.

  Returns:
    {name, plan, finished, shards, items, records, bytes, skipped: {reason: number}, first: {reason: message}, damaged,
    lengths: records of each shard}.

  Raises:
    SphinxError: a shard is missing or holds another number of records than was counted, or there are no records at all.
  """
  from array_record.python.array_record_module import ArrayRecordReader

  folder = epath.Path(build.output)
  reports = [building.report_of(build, shard) for shard in shards]
  missing = [shard.number for shard, report in zip(shards, reports) if report is None]
  if missing:
    raise _refused(
      folder,
      f'{len(shards) - len(missing)} of {len(shards)} shards (not {missing[0]}, ...)',
      'all',
      'run the same command again',
    )
  for shard, report in zip(shards, reports):
    if '://' not in build.output:  # array_record itself reads only local files.
      reader = ArrayRecordReader(str(building.place(build, shard)))
      held = reader.num_records()
      reader.close()
      _equal(building.place(build, shard), 'records in the file', held, report['records'])
    _equal(
      building.place(build, shard),
      'records and skipped items',
      report['records'] + sum(report['skipped'].values()),
      report['items'],
    )
  split = _summed(build, shards, reports)
  if not split['records']:
    why = next(iter([*split['first'].values(), *split['damaged'].values()]), 'it is empty')
    raise _refused(
      folder, f'no record of {split["items"]} items ({why})', 'records', 'check root and settings'
    )
  known = read(folder)
  known['splits'][build.split] = split
  _describe(build, [other for other in known['splits'].values() if other['finished']])
  building.save(folder / building.FILE, known)
  for left in list(
    folder.glob(f'{building.DOING}*')
  ):  # Reports, and what killed processes were writing.
    left.rmtree()
  return split


def table(split: dict) -> str:
  """What was built, as text."""
  rows = [('shards', split['shards']), ('items', split['items']), ('records', split['records'])]
  rows += [
    (f'skipped: {reason}', count)
    for reason, count in sorted(split['skipped'].items(), key=lambda pair: -pair[1])
  ]
  rows += [('damaged files', len(split['damaged']))] * bool(split['damaged']) + [
    ('bytes', split['bytes'])
  ]
  width = max(len(name) for name, _ in rows)
  first = {
    f'skipped: {reason}': f'   e.g. {message:.100}' for reason, message in split['first'].items()
  }
  lines = [f'{name:<{width}}  {value:>15,}{first.get(name, "")}' for name, value in rows]
  return '\n'.join(
    [*lines, *(f'damaged: {path} {why}' for path, why in list(split['damaged'].items())[:5])]
  )


def _summed(build: Build, shards: list[Shard], reports: list[dict]) -> dict:
  skipped, first, damaged = Counter(), {}, {}
  for shard, report in zip(shards, reports):
    skipped.update(report['skipped'])
    first = report['first'] | first
    damaged |= {path or shard.settings: why for path, why in report['damaged'].items()}
  total = {key: sum(report[key] for report in reports) for key in ('items', 'records', 'bytes')}
  return {
    'name': building.split_name(build.split),
    'plan': building.digest(shards),
    'finished': True,
    'shards': len(shards),
    **total,
    'skipped': dict(skipped),
    'first': first,
    'damaged': damaged,
    'lengths': [report['records'] for report in reports],
  }


def _describe(build: Build, splits: list[dict]) -> None:
  """Writes TFDS's metadata, and reads it back."""
  made = building.features()
  import tensorflow_datasets as tfds

  infos = [
    tfds.core.SplitInfo(
      name=split['name'], shard_lengths=split['lengths'], num_bytes=split['bytes']
    )
    for split in splits
  ]
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of what it does.
    tfds.folder_dataset.write_metadata(
      data_dir=build.output,
      features=made,
      split_infos=infos,
      check_data=False,
      disable_shuffling=True,
      description=f'{build.source} for {build.task}, written by sphinx_jax.prepare',
    )
  found = tfds.builder_from_directory(build.output).info.splits
  for split in splits:
    _equal(
      build.output,
      f'shards of {split["name"]} in TFDS',
      list(found[split['name']].shard_lengths),
      split['lengths'],
    )


def _check_files(build: Build, split: dict) -> None:
  names = {path.name for path in epath.Path(build.output).iterdir()}
  wanted = [
    building.place(build, Shard(i, split['shards'], '')).name for i in range(split['shards'])
  ]
  missing = [name for name in wanted if name not in names]
  if missing:
    raise _refused(
      build.output,
      f"a finished split '{build.split}' without {len(missing)} of its shards ({missing[0]}, ...)",
      'all',
      'delete the folder to build again',
    )


def _equal(where: epath.PathLike, what: str, got: object, expected: object) -> None:
  if got != expected:
    raise _refused(
      where, f'{what}: {got}', f'{expected}', 'delete it and run the same command again'
    )


def _refused(where: epath.PathLike, got: str, expected: str, do: str) -> errors.SphinxError:
  return errors.make(f"build in '{where}'", got, expected, do)
