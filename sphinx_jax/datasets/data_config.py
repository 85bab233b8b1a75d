"""A data_config of the official recipe: a YAML list of conversation files, mixed into one source.

    META:
      - path: 'llava_v1_5_mix665k.json'     # .json or .jsonl, as in jsonl.py
        type: 'image_text'                  # a group, 'default' if it is left out
        root: 'images'                      # prefix of every image path
        ratio: 0.5                          # share of the items, sampled like the official code

The official code takes all samples of a global batch from one type, because its text-only batches
and its image batches have different shapes. Here a row can hold both, so all types are mixed. An
entry that names a `type` has the items of that type only, and can have its own weight in the
mixture. Source: docs/official_sphinx.md, "Fine-tuning recipe".
"""

import bisect
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.data.record import Record, Source
from sphinx_jax.datasets import entries
from sphinx_jax.datasets.files import record_opened
from sphinx_jax.datasets.jsonl import Jsonl

_KEYS = {'path': str, 'type': str, 'root': str, 'ratio': (int, float)}


def open_source(entry: Mapping[str, Any], data_dir: str | Path | None = None) -> 'DataConfig':
  """Opens the source of a mixture entry.

  Args:
    entry: {path, type?, task?, too_long?}. path is the YAML file, relative to data_dir. type
      selects the files of one type, by default all. task is the task of the records, by default
      'dialog'. too_long is 'skip' (the default) or 'cut_text'.
    data_dir: root of all datasets of the run. Relative paths and roots in the file are relative to
      it.

  Raises:
    SphinxError: a key is missing or unknown; the YAML file is wrong (the message names file and
      entry), or no entry has the type; see also `Jsonl`.
  """
  entries.check(entry, 'data_config', required=('path',), optional=('type', 'task', 'too_long'))
  base = Path(data_dir or '')
  path = base / entry['path']
  parts = read(path)
  wanted_type = entry.get('type')
  if wanted_type is not None:
    types = {part['type'] for part in parts}
    if wanted_type not in types:
      raise errors.unknown(f"type in '{path}'", wanted_type, types)
    parts = [part for part in parts if part['type'] == wanted_type]
  return DataConfig(
    str(path), parts, base, entry.get('task') or 'dialog', entry.get('too_long') or 'skip'
  )


def read(path: Path) -> list[dict[str, Any]]:
  """Returns the entries {path, type, root, ratio} of a data_config, grouped by type.

  The official code has the same order.

  Raises:
    SphinxError: the file is unreadable or not YAML, or an entry is wrong. The message has the
      number of the entry, from 1.
  """
  import yaml  # Only for this kind of file.

  try:
    value = yaml.safe_load(path.read_bytes())
  except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
    raise errors.make(
      f"data_config '{path}'",
      ' '.join(str(error).split()),
      'a YAML file',
      'check the path and the file',
    ) from error
  record_opened(path)
  items = value.get('META') if isinstance(value, dict) else value
  if not isinstance(items, list) or not items:
    raise errors.make(
      f"data_config '{path}'",
      f'{items!r:.80}',
      'a list META of {path, type, root, ratio}',
      'see the docstring of data_config.py',
    )
  parts = [_check_entry(path, number, item) for number, item in enumerate(items, 1)]
  types = list(dict.fromkeys(part['type'] for part in parts))
  return sorted(parts, key=lambda part: types.index(part['type']))


def _check_entry(path: Path, number: int, item: Any) -> dict[str, Any]:
  who = f"data_config '{path}', entry {number}"
  if not isinstance(item, dict) or 'path' not in item:
    raise errors.make(
      who, f'{item!r:.80}', 'a mapping with path', 'see the docstring of data_config.py'
    )
  for key, value in item.items():
    if key not in _KEYS:
      raise errors.unknown(f'{who}: key', key, _KEYS)
    if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
      kind = 'a text' if _KEYS[key] is str else 'a number'
      raise errors.make(f'{who}: {key}', repr(value), kind, 'correct it')
  entry = {'type': 'default', 'root': '', 'ratio': 1.0} | item
  if not 0 < entry['ratio'] <= 1:
    raise errors.make(
      f'{who}: ratio',
      f'{entry["ratio"]}',
      'a share in (0, 1]',
      'delete the entry to use none of it',
    )
  return entry


class DataConfig(Source):
  """The conversations of several files, one file after the other.

  Args:
    name: path of the YAML file, for messages.
    parts: entries of `read`.
    base: directory that relative paths are relative to.
    task: task of the records.
    too_long: 'skip' or 'cut_text'.

  Raises:
    SphinxError: see `Jsonl`; or a ratio selects no item of a file.
  """

  def __init__(
    self, name: str, parts: Sequence[Mapping[str, Any]], base: Path, task: str, too_long: str
  ) -> None:
    self.name, self.task, self.too_long = name, task, too_long
    self._files = [
      Jsonl(base / part['path'], base / part['root'], task, too_long) for part in parts
    ]
    self._selected = [
      _select_items(name, part, len(file)) for part, file in zip(parts, self._files)
    ]
    self._ends = list(itertools.accumulate(map(len, self._selected)))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Record:
    """Returns record `index`. Raises BadExample like `Jsonl`, naming its file."""
    file, item = self._find(index)
    return file[item]

  def outline(self, index: int, epoch: int) -> Record:
    """Returns record `index` like `Jsonl`."""
    file, item = self._find(index)
    return file.outline(item, epoch)

  def _find(self, index: int) -> tuple[Jsonl, int]:
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')  # Ends iteration.
    part = bisect.bisect_right(self._ends, index)
    selected = self._selected[part]
    return self._files[part], selected[index - self._ends[part]]


def _select_items(name: str, part: Mapping[str, Any], count: int) -> Sequence[int]:
  """Indices of the items of a file that are used.

  The official code has `random.seed(0); random.sample(items, int(count * ratio))`.
  """
  if part['ratio'] == 1:
    return range(count)
  selected = random.Random(0).sample(range(count), int(count * part['ratio']))
  if not selected:
    raise errors.make(
      f"data_config '{name}'",
      f"ratio {part['ratio']} of the {count} items of '{part['path']}'",
      'at least one item',
      'raise the ratio, or delete the entry',
    )
  return selected
