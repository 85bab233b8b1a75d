"""The output folder of a build: `claim` checks whose it is, `finish` that a split is complete."""

import contextlib
import io
import json
import os
import types
from collections import Counter
from collections.abc import Mapping
from typing import Any

from etils import epath

from sphinx_jax.core import errors, files, paths, text
from sphinx_jax.datasets.files import changed_files
from sphinx_jax.preparation.plan import (
  BUILD_FILE,
  PROGRESS_DIR,
  Build,
  Shard,
  digest,
  outlines_path,
  shard_path,
)
from sphinx_jax.preparation.write import features, read_report

_DAMAGED_SHOWN = 5  # Damaged files that the table names.


def claim(
  build: Build, shards: list[Shard], source_files: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, Any] | None:
  """Begins or resumes a split in the output folder.

  Args:
    build: the build.
    shards: all of its shards.
    source_files: the files that it is made from, see `datasets.files.opened_files`.

  Returns:
    The result of `finish` if the split is finished already, else None.

  Raises:
    SphinxError: the folder holds other files, another build, the split of other files, or another
      unfinished split; or a file changed since the split was begun.
  """
  folder = epath.Path(build.output)
  state = read_state(folder)
  if state is None:
    if not paths.is_empty(folder):
      raise _refused(
        folder,
        'files that do not belong to a build',
        'an empty folder, or a build',
        'choose another folder',
      )
    state = {'identity': build.identity(), 'splits': {}}
  for key, value in build.identity().items():
    stored = state['identity'].get(key)
    if stored != value:
      raise _refused(
        folder,
        f'a build of {key} {stored!r}',
        f'{value!r}',
        'choose another folder, or delete this one',
      )
  split = state['splits'].get(build.split)
  if split and split['plan'] != digest(shards):
    raise _refused(
      folder,
      f"split '{build.split}', which was begun with other files or another --shard",
      f'the same {len(shards)} shards as now',
      'use the same files and --shard, or delete the folder',
    )
  changed = changed_files(split.get('files', {}) if split else {}, source_files)
  if changed:
    raise _refused(
      folder,
      f"split '{build.split}', whose files changed since it was begun: {'; '.join(changed)}",
      'the same files',
      'restore them, or delete the folder to build again',
    )
  if split and split['finished']:
    _check_shards_exist(build, split)
    return split
  for name, other in state['splits'].items():
    if not other['finished'] and name != build.split:
      raise _refused(
        folder,
        f"the unfinished split '{name}'",
        'one split at a time',
        'finish that split first, with its own command',
      )
  state['splits'][build.split] = {
    'name': build.split_name,
    'plan': digest(shards),
    'finished': False,
    'files': dict(source_files),
  }
  paths.make_folder(folder)
  files.write_json(folder / BUILD_FILE, state, indent=1)
  paths.make_folder(folder / PROGRESS_DIR)
  return None


def read_state(folder: epath.Path) -> dict[str, Any] | None:
  """Returns build.json, {'identity': {...}, 'splits': {split: {...}}}, or None if there is none.

  Raises:
    SphinxError: it is damaged.
  """
  path = epath.Path(folder) / BUILD_FILE
  if not path.exists():
    return None
  try:
    state = json.loads(path.read_text())
    if not isinstance(state['identity'], dict) or not isinstance(state['splits'], dict):
      raise ValueError('identity and splits are no objects')
  except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
    raise _refused(
      folder,
      f'a damaged {BUILD_FILE} ({error})',
      'the file that a build wrote',
      'build again, into an empty folder',
    ) from error
  return state


def finish(build: Build, shards: list[Shard]) -> dict[str, Any]:
  """Verifies all shards and writes the metadata that TFDS needs to read them.

  Returns:
    {name, plan, files, finished, shards, items, records, bytes, skipped: {reason: number}, first:
    {reason: message}, damaged: {path: reason}, lengths: records of each shard}.

  Raises:
    SphinxError: a shard is missing or holds another number of records than its report, or there are
      no records at all.
  """
  folder = epath.Path(build.output)
  reports = [read_report(build, shard) for shard in shards]
  missing = [shard.number for shard, report in zip(shards, reports) if report is None]
  if missing:
    raise _refused(
      folder,
      f'{len(shards) - len(missing)} of {len(shards)} shards (without {missing[0]}, ...)',
      'all shards',
      'run the same command again',
    )
  for shard, report in zip(shards, reports):
    _check_shard(build, shard, report)
  split = _sum_reports(build, shards, reports)
  if not split['records']:
    reasons = [*split['first'].values(), *split['damaged'].values(), 'it is empty']
    raise _refused(
      folder,
      f'no record of {split["items"]} items ({reasons[0]})',
      'records',
      'check root and settings',
    )
  state = read_state(folder)
  split['files'] = state['splits'][build.split].get('files', {})
  state['splits'][build.split] = split
  _write_metadata(build, [other for other in state['splits'].values() if other['finished']])
  files.write_json(folder / BUILD_FILE, state, indent=1)
  # Reports, and the temporary folders of killed processes.
  for leftover in list(folder.glob(f'{PROGRESS_DIR}*')):
    leftover.rmtree()
  return split


def table(split: dict[str, Any]) -> str:
  """The result of `finish` as text."""
  rows = [[name, f'{split[name]:,}', ''] for name in ('shards', 'items', 'records')]
  for reason, count in sorted(split['skipped'].items(), key=lambda pair: -pair[1]):
    rows.append([f'skipped: {reason}', f'{count:,}', f'e.g. {split["first"][reason]:.100}'])
  if split['damaged']:
    rows.append(['damaged files', f'{len(split["damaged"]):,}', ''])
  rows.append(['bytes', f'{split["bytes"]:,}', ''])
  lines = [text.table(rows, align='lrl')]
  for path, reason in list(split['damaged'].items())[:_DAMAGED_SHOWN]:
    lines.append(f'damaged: {path} {reason}')
  return '\n'.join(lines)


def _check_shard(build: Build, shard: Shard, report: dict[str, Any]) -> None:
  """Raises SphinxError if a shard does not agree with its report."""
  from array_record.python.array_record_module import ArrayRecordReader

  path = shard_path(build, shard)
  if not files.is_remote(build.output):  # array_record itself reads only local files.
    for file in (path, outlines_path(path)):
      reader = ArrayRecordReader(str(file))
      records = reader.num_records()
      reader.close()
      _check_equal(file, 'records in the file', records, report['records'])
  counted = report['records'] + sum(report['skipped'].values())
  _check_equal(path, 'records and skipped items', counted, report['items'])


def _sum_reports(
  build: Build, shards: list[Shard], reports: list[dict[str, Any]]
) -> dict[str, Any]:
  skipped, first, damaged = Counter(), {}, {}
  for shard, report in zip(shards, reports):
    skipped.update(report['skipped'])
    first = report['first'] | first
    for path, reason in report['damaged'].items():
      damaged[path or shard.settings] = reason
  totals = {key: sum(report[key] for report in reports) for key in ('items', 'records', 'bytes')}
  return {
    'name': build.split_name,
    'plan': digest(shards),
    'finished': True,
    'shards': len(shards),
    **totals,
    'skipped': dict(skipped),
    'first': first,
    'damaged': damaged,
    'lengths': [report['records'] for report in reports],
  }


def _write_metadata(build: Build, splits: list[dict[str, Any]]) -> None:
  """Writes TFDS's metadata of all finished splits, and reads it back."""
  record_features = features()
  import tensorflow_datasets as tfds

  infos = [
    tfds.core.SplitInfo(
      name=split['name'], shard_lengths=split['lengths'], num_bytes=split['bytes']
    )
    for split in splits
  ]
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its progress.
    tfds.folder_dataset.write_metadata(
      data_dir=build.output,
      features=record_features,
      split_infos=infos,
      check_data=False,
      disable_shuffling=True,
      description=f'{build.source} for {build.task}, written by sphinx_jax.prepare',
    )
  written = tfds.builder_from_directory(build.output).info.splits
  for split in splits:
    lengths = list(written[split['name']].shard_lengths)
    _check_equal(build.output, f'shards of {split["name"]} in TFDS', lengths, split['lengths'])


def _check_shards_exist(build: Build, split: dict[str, Any]) -> None:
  """Raises SphinxError if files of a finished split are missing."""
  present = {path.name for path in epath.Path(build.output).iterdir()}
  count = split['shards']
  names = [shard_path(build, Shard(number, count, '')).name for number in range(count)]
  missing = [name for name in names if name not in present]
  if missing:
    raise _refused(
      build.output,
      f"a finished split '{build.split}' without {len(missing)} of its shards ({missing[0]}, ...)",
      'all shards',
      'delete the folder to build again',
    )


def _check_equal(where: os.PathLike | str, what: str, got: object, expected: object) -> None:
  if got != expected:
    raise _refused(
      where, f'{what}: {got}', f'{expected}', 'delete it and run the same command again'
    )


def _refused(where: os.PathLike | str, got: str, expected: str, do: str) -> errors.SphinxError:
  return errors.make(f"build in '{where}'", got, expected, do)
