"""The official recipe's data_config: a YAML list of conversation files, mixed into one source (FACTS "Fine-tuning recipe").

    META:
      - path: 'llava_v1_5_mix665k.json'     # .json or .jsonl, as in jsonl.py
        type: 'image_text'                  # a group; 'default' where it is left out
        root: 'images'                      # before every image path
        ratio: 0.5                          # share of its items, drawn as the official code draws them

The official code takes all samples of a global batch from one type, because its text-only and picture batches differ in
shape. Here rows hold both, so all types are mixed; an entry that names one `type` has the items of that type alone, and can
be given a weight of its own in the mixture.
"""

import bisect
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.data.record import Record, Source
from sphinx_jax.datasets.jsonl import Jsonl

_KEYS = {'path': str, 'type': str, 'root': str, 'ratio': (int, float)}


def open_source(entry: Mapping[str, Any], data_dir: str | Path | None = None) -> 'DataConfig':
  """The source of a mixture entry {path, type?, task?, too_long?}.

  Args:
    entry: path: of the YAML file, relative to data_dir; type: of the files to take, by default all; task: name that
      records carry, 'dialog' by default; too_long: 'skip' or 'cut_text'.
    data_dir: of the run; paths and roots in the file that are not absolute are relative to it.

  Raises:
    SphinxError: the file is no such YAML (file and entry are named), no entry has the type; see `Jsonl`.
  """
  base = Path(data_dir or '')
  path = base / entry['path']
  parts = read(path)
  wanted = entry.get('type')
  if wanted is not None:
    if wanted not in {part['type'] for part in parts}:
      raise errors.unknown(f"type in '{path}'", wanted, {part['type'] for part in parts})
    parts = [part for part in parts if part['type'] == wanted]
  return DataConfig(
    str(path), parts, base, entry.get('task', 'dialog'), entry.get('too_long', 'skip')
  )


def read(path: Path) -> list[dict]:
  """The entries {path, type, root, ratio} of a data_config, those of one type together as the official code has them.

  Raises:
    SphinxError: unreadable, not YAML, or an entry is wrong; which one is told, counted from 1.
  """
  import yaml  # Only who reads such a file needs it.

  try:
    value = yaml.safe_load(path.read_text())
  except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
    raise errors.make(
      f"data_config '{path}'",
      ' '.join(str(error).split()),
      'a YAML file',
      'check the path and the file',
    ) from error
  found = value.get('META') if isinstance(value, dict) else value
  if not isinstance(found, list) or not found:
    raise errors.make(
      f"data_config '{path}'",
      f'{found!r:.80}',
      'a list META of {path, type, root, ratio}',
      'see the docstring',
    )
  parts = [_entry(path, number, item) for number, item in enumerate(found, 1)]
  groups = list(dict.fromkeys(part['type'] for part in parts))
  return sorted(parts, key=lambda part: groups.index(part['type']))


def _entry(path: Path, number: int, item: Any) -> dict:
  who = f"data_config '{path}', entry {number}"
  if not isinstance(item, dict) or 'path' not in item:
    raise errors.make(
      who, f'{item!r:.80}', 'a mapping with path', 'see the docstring of data_config.py'
    )
  for key, value in item.items():
    if key not in _KEYS:
      raise errors.unknown(f'{who}: key', key, _KEYS)
    if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
      raise errors.make(
        f'{who}: {key}', repr(value), 'a text' if _KEYS[key] is str else 'a number', 'correct it'
      )
  entry = {'type': 'default', 'root': '', 'ratio': 1.0} | item
  if not 0 < entry['ratio'] <= 1:
    raise errors.make(
      f'{who}: ratio',
      f'{entry["ratio"]}',
      'a share in (0, 1]',
      'leave the entry out to use none of it',
    )
  return entry


class DataConfig(Source):
  """The conversations of several files, one after the other.

  Args:
    name: of the YAML file.
    parts: of `read`.
    base: what relative paths are relative to.
    task: name that records carry.
    too_long: 'skip' or 'cut_text'.

  Raises:
    SphinxError: see `Jsonl`; or a ratio leaves no item of a file.
  """

  def __init__(
    self, name: str, parts: Sequence[Mapping[str, Any]], base: Path, task: str, too_long: str
  ):
    self.name, self.task, self.too_long = name, task, too_long
    self._files = [
      Jsonl(base / part['path'], base / part['root'], task, too_long) for part in parts
    ]
    self._chosen = [_sample(name, part, len(file)) for part, file in zip(parts, self._files)]
    self._ends = list(itertools.accumulate(map(len, self._chosen)))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Record:
    """Record `index`. Raises BadExample as `Jsonl` does, with the file it is of."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')  # ends plain iteration
    part = bisect.bisect_right(self._ends, index)
    return self._files[part][self._chosen[part][index - self._ends[part]]]


def _sample(name: str, part: Mapping[str, Any], count: int) -> Sequence[int]:
  """Which items of a file: all, or as `random.seed(0); random.sample(items, int(count * ratio))` of the official code."""
  if part['ratio'] == 1:
    return range(count)
  chosen = random.Random(0).sample(range(count), int(count * part['ratio']))
  if not chosen:
    raise errors.make(
      f"data_config '{name}'",
      f"ratio {part['ratio']} of the {count} items of '{part['path']}'",
      'at least one item',
      'raise the ratio, or leave the entry out',
    )
  return chosen
