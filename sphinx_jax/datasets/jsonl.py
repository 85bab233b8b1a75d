"""The user's own data in the official format, JSON lines or one JSON list.

An item is {"image": path, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]};
without "image" it is text only. "<image>" is removed from the values, which are stripped (FACTS "Conversation").
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample, Record, Source, check_too_long


def open_source(entry: Mapping[str, Any], data_dir: str | Path | None = None) -> 'Jsonl':
  """The source of a mixture entry {path, root?, task?, too_long?}.

  Args:
    entry: path: the .json or .jsonl file, relative to data_dir if there is one; root: folder of the images, by default
      the file's own; task: name that records carry, 'dialog' by default; too_long: 'skip' or 'cut_text'.
    data_dir: of the run.

  Raises:
    SphinxError: see `Jsonl`.
  """
  path = Path(data_dir or '', entry['path'])
  return Jsonl(path, entry.get('root'), entry.get('task', 'dialog'), entry.get('too_long', 'skip'))


class Jsonl(Source):
  """Records of a .json or .jsonl file.

  Raises:
    SphinxError: see `Rows`; or the policy has no such name.
  """

  def __init__(
    self,
    path: str | Path,
    root: str | Path | None = None,
    task: str = 'dialog',
    too_long: str = 'skip',
  ):
    self.path, self.name, self.task, self.too_long = Path(path), str(path), task, too_long
    self._root = Path(root) if root else self.path.parent
    check_too_long(too_long)
    self._rows = Rows(self.name, self.path)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    """Record `index`.

    Raises:
      BadExample: not JSON, not the format, or no such image; the message tells file and line.
    """
    where, item = self._rows[index]
    said = turns(where, conversations(where, item))
    return Record(
      where,
      self.task,
      self._image(where, item),
      said,
      tuple({'answer': answer} for _, answer in said),
    )

  def _image(self, where: str, item: dict) -> bytes | None:
    if item.get('image') is None:
      return None
    try:
      return (self._root / item['image']).read_bytes()
    except (OSError, TypeError, ValueError) as error:
      raise BadExample('missing image', f'{where}: {error}') from error


class Rows:
  """The values of a .json list or of the lines of a .jsonl file; of .jsonl only the lines' offsets are held in memory.

  Args:
    name: of source and file, for messages.
    path: the file; what is not named .json is read as lines.

  Raises:
    SphinxError: the file is missing, empty, or a .json that is no list.
  """

  def __init__(self, name: str, path: Path):
    self.path = path
    if not path.is_file():
      raise errors.make(
        f"source '{name}'",
        'no such file',
        'a .json or .jsonl file of conversations',
        'check the path',
      )
    self._items = _json_list(name, path) if path.suffix == '.json' else None
    self._lines, self._offsets = _index(path) if self._items is None else (None, None)
    if not len(self):
      raise errors.make(
        f"source '{name}'", 'an empty file', 'at least one conversation', 'check how it was written'
      )

  def __len__(self) -> int:
    return len(self._items if self._items is not None else self._offsets)

  def __getitem__(self, index: int) -> tuple[str, Any]:
    """(where it stands, for messages; the value). Raises BadExample ('not json') for a line."""
    if self._items is not None:
      return f'{self.path}: item {index + 1}', self._items[index]
    where = f'{self.path}:{self._lines[index]}'
    with open(self.path, 'rb') as file:
      file.seek(self._offsets[index])
      line = file.readline()
    try:
      return where, json.loads(line)
    except (ValueError, RecursionError) as error:
      raise BadExample('not json', f'{where}: {error}') from error


def conversations(where: str, item: Any) -> list[dict]:
  """The list of {"from", "value"} of an item. Raises BadExample ('not a conversation'): values are texts or numbers."""
  if not isinstance(item, dict) or not isinstance(item.get('conversations'), list):
    raise BadExample('not a conversation', f'{where}: no list "conversations"')
  for said in item['conversations']:
    known = isinstance(said, dict) and isinstance(said.get('from'), str)
    if not known or not isinstance(said.get('value'), (str, int, float)):
      raise BadExample(
        'not a conversation', f'{where}: turn {said!r:.80} is not from somebody with a value'
      )
  return item['conversations']


def _json_list(name: str, path: Path) -> list:
  try:
    items = json.loads(path.read_bytes() or b'[]')
  except (OSError, ValueError, RecursionError) as error:
    raise errors.make(
      f"source '{name}'",
      f'no JSON ({error})',
      'a JSON list of conversations',
      'name the file .jsonl if it has one item a line',
    ) from error
  if not isinstance(items, list):
    raise errors.make(
      f"source '{name}'",
      f'a JSON {type(items).__name__}',
      'a list of conversations',
      'wrap it in [ ]',
    )
  return items


def _index(path: Path) -> tuple[np.ndarray, np.ndarray]:
  """Numbers (from 1) and byte offsets of the lines that are not blank: int64[n] each."""
  numbers, offsets, offset = [], [], 0
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        numbers.append(number)
        offsets.append(offset)
      offset += len(line)
  return np.asarray(numbers, np.int64), np.asarray(offsets, np.int64)


def turns(where: str, conversation: list[dict]) -> tuple[tuple[str | None, str], ...]:
  """(question, answer) pairs of the official format; a missing human line is a question of None.

  Raises:
    BadExample: ('not a conversation', 'empty answer').
  """
  result: list[tuple[str | None, str | None]] = []
  for said in conversation:
    if said['from'] not in ('human', 'gpt'):
      raise BadExample(
        'not a conversation',
        f'{where}: turn {said!r:.80} is not from "human" or "gpt" with a value',
      )
    value = str(said['value']).replace('<image>', '').strip()
    if said['from'] == 'human':
      if result and result[-1][1] is None:
        raise BadExample(
          'not a conversation', f'{where}: two questions without an answer between them'
        )
      result.append((value, None))
    elif result and result[-1][1] is None:
      result[-1] = (result[-1][0], value)
    else:
      result.append((None, value))
  if result and result[-1][1] is None:
    result.pop()  # A last question without an answer has nothing to train.
  if not result or not all(answer for _, answer in result):
    raise BadExample(
      'empty answer', f'{where}: ' + ('an answer is empty' if result else 'no answers')
    )
  return tuple(result)
