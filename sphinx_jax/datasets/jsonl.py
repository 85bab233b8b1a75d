"""The user's own conversations in LLaVA's format: JSON lines, or one JSON list.

An item is {"image": path, "conversations": [{"from": "human", "value": ...}, {"from": "gpt",
"value": ...}, ...]}. An item without "image" is text only. "<image>" is removed from the values,
which are then stripped (docs/official_sphinx.md, "Conversation").
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample, Record, Source, check_too_long


def open_source(entry: Mapping[str, Any], data_dir: str | Path | None = None) -> 'Jsonl':
  """Opens the source of a mixture entry.

  Args:
    entry: {path, root?, task?, too_long?}. path is the .json or .jsonl file, relative to data_dir.
      root is the directory of the images, by default that of the file. task is the task of the
      records, by default 'dialog'. too_long is 'skip' (the default) or 'cut_text'.
    data_dir: root of all datasets of the run, or None.

  Raises:
    SphinxError: see `Jsonl`.
  """
  path = Path(data_dir or '', entry['path'])
  return Jsonl(path, entry.get('root'), entry.get('task', 'dialog'), entry.get('too_long', 'skip'))


class Jsonl(Source):
  """Records of a .json or .jsonl file.

  Args:
    path: the file.
    root: directory of the images, by default that of the file.
    task: task of the records.
    too_long: 'skip' or 'cut_text'.

  Raises:
    SphinxError: see `JsonItems`; or the policy is unknown.
  """

  def __init__(
    self,
    path: str | Path,
    root: str | Path | None = None,
    task: str = 'dialog',
    too_long: str = 'skip',
  ) -> None:
    self.path, self.name, self.task, self.too_long = Path(path), str(path), task, too_long
    self._root = Path(root) if root else self.path.parent
    check_too_long(too_long)
    self._items = JsonItems(self.name, self.path)

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> Record:
    """Returns record `index`.

    Raises:
      BadExample: the item is not JSON, has another format, or its image is missing. The message
        names the file and the line.
    """
    location, item = self._items[index]
    turns = read_turns(location, check_conversation(location, item))
    return Record(
      id=location,
      task=self.task,
      image=self._image(location, item),
      turns=turns,
      truth=tuple({'answer': answer} for _, answer in turns),
    )

  def _image(self, location: str, item: dict[str, Any]) -> bytes | None:
    if item.get('image') is None:
      return None
    try:
      return (self._root / item['image']).read_bytes()
    except (OSError, TypeError, ValueError) as error:
      raise BadExample('missing image', f'{location}: {error}') from error


class JsonItems:
  """The values of a .json list, or of the lines of a .jsonl file.

  Of a .jsonl file only the offsets of the lines are held in memory.

  Args:
    name: name of the source, for messages.
    path: the file. A file not named .json is read as lines.

  Raises:
    SphinxError: the file is missing or empty, or a .json file holds no list.
  """

  def __init__(self, name: str, path: Path) -> None:
    self.path = path
    if not path.is_file():
      raise errors.make(
        f"source '{name}'",
        'no such file',
        'a .json or .jsonl file of conversations',
        'check the path',
      )
    self._items: list[Any] | None = None
    if path.suffix == '.json':
      self._items = _read_list(name, path)
    else:
      self._line_numbers, self._offsets = _index_lines(path)
    if not len(self):
      raise errors.make(
        f"source '{name}'", 'an empty file', 'at least one conversation', 'check how it was written'
      )

  def __len__(self) -> int:
    return len(self._offsets if self._items is None else self._items)

  def __getitem__(self, index: int) -> tuple[str, Any]:
    """Returns (location for messages, value). Raises BadExample ('not json') for a line."""
    if self._items is not None:
      return f'{self.path}: item {index + 1}', self._items[index]
    location = f'{self.path}:{self._line_numbers[index]}'
    with open(self.path, 'rb') as file:
      file.seek(self._offsets[index])
      line = file.readline()
    try:
      return location, json.loads(line)
    except (ValueError, RecursionError) as error:
      raise BadExample('not json', f'{location}: {error}') from error


def check_conversation(location: str, item: Any) -> list[dict[str, Any]]:
  """Returns the list of {"from", "value"} of an item. The values are texts or numbers.

  Args:
    location: of the item, for messages.
    item: a JSON value.

  Raises:
    BadExample: 'not a conversation'.
  """
  if not isinstance(item, dict) or not isinstance(item.get('conversations'), list):
    raise BadExample('not a conversation', f'{location}: no list "conversations"')
  for turn in item['conversations']:
    has_speaker = isinstance(turn, dict) and isinstance(turn.get('from'), str)
    if not has_speaker or not isinstance(turn.get('value'), (str, int, float)):
      raise BadExample(
        'not a conversation', f'{location}: turn {turn!r:.80} needs "from" and "value"'
      )
  return item['conversations']


def read_turns(
  location: str, conversation: list[dict[str, Any]]
) -> tuple[tuple[str | None, str], ...]:
  """Returns the (question, answer) pairs of a conversation in LLaVA's format.

  An answer without a question before it has the question None. A last question without an answer
  has nothing to train, and is dropped.

  Args:
    location: of the item, for messages.
    conversation: the result of `check_conversation`.

  Raises:
    BadExample: 'not a conversation', 'empty answer'.
  """
  turns: list[tuple[str | None, str | None]] = []
  for turn in conversation:
    speaker = turn['from']
    if speaker not in ('human', 'gpt'):
      raise BadExample(
        'not a conversation', f'{location}: turn {turn!r:.80} is not from "human" or "gpt"'
      )
    value = str(turn['value']).replace('<image>', '').strip()
    is_answered = not turns or turns[-1][1] is not None
    if speaker == 'human':
      if not is_answered:
        raise BadExample(
          'not a conversation', f'{location}: two questions without an answer between them'
        )
      turns.append((value, None))
    elif is_answered:
      turns.append((None, value))
    else:
      turns[-1] = (turns[-1][0], value)
  if turns and turns[-1][1] is None:
    turns.pop()
  if not turns:
    raise BadExample('empty answer', f'{location}: no answers')
  if not all(answer for _, answer in turns):
    raise BadExample('empty answer', f'{location}: an answer is empty')
  return tuple(turns)


def _read_list(name: str, path: Path) -> list[Any]:
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


def _index_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
  """Numbers (from 1) and byte offsets of the lines that are not blank: int64[n] each."""
  numbers, offsets, offset = [], [], 0
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        numbers.append(number)
        offsets.append(offset)
      offset += len(line)
  return np.asarray(numbers, np.int64), np.asarray(offsets, np.int64)
