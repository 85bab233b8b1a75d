"""The user's own conversations: JSON lines, or one JSON list.

The usual item is {"image": path, "conversations": [{"from": "human", "value": ...}, {"from": "gpt",
"value": ...}, ...]}. An item without "image" is text only. `"images": [path, ...]` are several,
each at its `<image>` in a question. conversations.py lists the other forms.
"""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sphinx_jax.core import errors, file_forms, files
from sphinx_jax.data import video
from sphinx_jax.data.record import BadExample, Record, Source, Unread, check_too_long
from sphinx_jax.datasets import conversations, entries
from sphinx_jax.datasets.files import ImageOf, leave_image, read_image, record_opened


def open_source(entry: Mapping[str, Any], data_dir: str | Path | None = None) -> 'Jsonl':
  """Opens the source of a mixture entry.

  Args:
    entry: {path, root?, task?, too_long?, frames?}. path is the .json or .jsonl file, relative to
      data_dir. root is the directory of the images, by default that of the file. task is the task
      of the records, by default 'dialog'. too_long is 'skip' (the default) or 'cut_text'. frames is
      the number of images that a video becomes.
    data_dir: root of all datasets of the run, or None.

  Raises:
    SphinxError: a key is missing or unknown; see also `Jsonl`.
  """
  return open_as(Jsonl, 'jsonl', entry, data_dir)


def open_as(
  kind: type['Jsonl'], name: str, entry: Mapping[str, Any], data_dir: str | Path | None
) -> 'Jsonl':
  """Opens a source of a kind of records as `open_source` does; `name` is that of the source."""
  entries.check(entry, name, required=('path',), optional=('root', 'task', 'too_long', 'frames'))
  return kind(
    Path(data_dir or '', entry['path']),
    entry.get('root'),
    entry.get('task') or 'dialog',
    entry.get('too_long') or 'skip',
    entry.get('frames') or conversations.FRAMES,
  )


class Jsonl(Source):
  """Records of a .json or .jsonl file.

  Args:
    path: the file.
    root: directory of the images, by default that of the file.
    task: task of the records.
    too_long: 'skip' or 'cut_text'.
    frames: images that a video becomes, unless its item has a number.

  Raises:
    SphinxError: see `JsonItems`; or the policy is unknown.
  """

  def __init__(
    self,
    path: str | Path,
    root: str | Path | None = None,
    task: str = 'dialog',
    too_long: str = 'skip',
    frames: int = conversations.FRAMES,
  ) -> None:
    self.path, self.name, self.task, self.too_long = Path(path), str(path), task, too_long
    self._root, self._frames = Path(root) if root else self.path.parent, frames
    check_too_long(too_long)
    self._items = JsonItems(self.name, self.path)

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> Record:
    """Returns record `index`.

    Raises:
      BadExample: the item is not JSON, has another format, or an image is missing. The message
        names the file and the line.
    """
    return self._read(index, read_image)

  def outline(self, index: int, epoch: int) -> Record:
    """Returns record `index`, whose image files are left unread. Raises as `read`."""
    del epoch
    return self._read(index, leave_image)

  def _read(self, index: int, image_of: ImageOf) -> Record:
    return self._record(*self._items[index], image_of)

  def _record(self, location: str, item: Any, image_of: ImageOf) -> Record:
    conversation = conversations.read(location, item, self._frames)
    turns = conversations.read_turns(location, conversation.messages)
    return Record(
      id=location,
      task=self.task,
      images=tuple(
        image
        for media in conversation.media
        for image in read_media(location, media, self._root, image_of)
      ),
      turns=turns,
      truth=tuple({'answer': answer} for _, answer in turns),
      marks=conversation.marks,
    )


def read_media(
  location: str, media: conversations.Media, root: Path, image_of: ImageOf
) -> list[bytes | Path | Unread]:
  """Returns the images of an image or a video of an item.

  Args:
    location: of the item, for messages.
    media: a path relative to `root`, or a data: URL.
    root: directory of the images.
    image_of: what becomes of the file of an image.

  Raises:
    BadExample: a missing image or video, a URL.
  """
  path = media.path
  try:
    if media.frames:
      return video.frames(root / path, media.frames)
    if path.startswith('data:'):
      return [base64.b64decode(path.partition(';base64,')[2], validate=True)]
    if '://' in path:
      raise ValueError('a URL, which is not downloaded')
    file = root / path
    try:
      return [image_of(location, file)]
    except BadExample:
      file.stat()  # If it is missing, the message has the path of the item.
      raise
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise BadExample('missing image', f'{location}: {path!r:.200}: {reason}') from error


class JsonItems:
  """The values of a .json list, or of the lines of a .jsonl file. Either may be packed (.gz).

  Of a .jsonl file only the offsets of the lines are held in memory.

  Args:
    name: name of the source, for messages.
    path: the file. A file not named .json is read as lines.

  Raises:
    SphinxError: the file is missing, empty, damaged or UTF-16, or has the other form than its name.
  """

  def __init__(self, name: str, path: Path) -> None:
    self.path, self._who = path, f"source '{name}'"
    if not path.is_file():
      raise errors.make(
        self._who, 'no such file', 'a .json or .jsonl file of conversations', 'check the path'
      )
    record_opened(path)
    self._items: list[Any] | None = None
    try:
      if path.name.lower().removesuffix('.gz').endswith('.json'):
        self._items = self._read_list()
      else:
        self._file = files.open_seekable(path)
        self._line_numbers, self._offsets = _index_lines(self._file)
    except OSError as error:
      raise errors.make(
        self._who, error.strerror or str(error), 'a readable file', 'check the file'
      ) from error
    if not len(self):
      raise errors.make(
        self._who, 'an empty file', 'at least one conversation', 'check how it was written'
      )
    if self._items is None:
      self._check_lines()

  def __len__(self) -> int:
    return len(self._line_numbers if self._items is None else self._items)

  def __getitem__(self, index: int) -> tuple[str, Any]:
    """Returns (location for messages, value). Raises BadExample ('not json') for a line."""
    if self._items is not None:
      return f'{self.path}: item {index + 1}', self._items[index]
    location = f'{self.path}:{self._line_numbers[index]}'
    line = self._line(index)
    try:
      return location, json.loads(line)
    except (ValueError, RecursionError) as error:
      begin = line[:40].decode(errors='replace')
      raise BadExample(
        'not json', f'{location}: {begin!r}: {files.not_json(line, error)}'
      ) from error

  def text(self, index: int) -> bytes:
    """Returns the JSON text of a value, which need not be JSON in a file of lines."""
    if self._items is not None:
      return json.dumps(self._items[index]).encode()
    return self._line(index).strip()

  def _line(self, index: int, limit: int | None = None) -> bytes:
    """The first `limit` bytes of a line, None: all of it and the blank lines after it."""
    begin, end = (int(offset) for offset in self._offsets[index : index + 2])
    return os.pread(self._file.fileno(), limit or end - begin, begin)

  def _read_list(self) -> list[Any]:
    data = files.read_bytes(self.path) or b'[]'
    try:
      items = json.loads(data)
    except (ValueError, RecursionError) as error:
      raise errors.make(
        self._who,
        f'a file that is {files.not_json(data, error)}',
        'a JSON list of conversations',
        'name the file .jsonl if it has one item a line',
      ) from error
    if not isinstance(items, list):
      raise errors.make(
        self._who,
        f'a JSON {type(items).__name__}',
        'a list of conversations',
        'store the list alone, or wrap one conversation in [ ]',
      )
    return items

  def _check_lines(self) -> None:
    """Raises SphinxError for a file that has one JSON value or another encoding."""
    head = self._line(0, limit=1024)
    form = file_forms.name(head)
    if form and not head.lstrip().startswith((b'{', b'[')):
      raise errors.make(self._who, form, 'one JSON object a line', 'fetch or convert the file')
    if files.is_utf16(head):
      raise errors.make(self._who, 'UTF-16 text', 'UTF-8', 'save the file as UTF-8')
    if files.begins_list(head) and (len(self) == 1 or not _is_json(self._line(0))):
      raise errors.make(self._who, 'a JSON list', 'one JSON object a line', 'name the file .json')


def _is_json(text: bytes) -> bool:
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def _index_lines(file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
  """Numbers (from 1) of the n lines that are not blank, int64[n], and where they begin.

  The offsets are int64[n + 1] and end with the size of the file.
  """
  numbers, offsets, offset = [], [], 0
  for number, line in enumerate(file, 1):
    if line.strip():
      numbers.append(number)
      offsets.append(offset)
    offset += len(line)
  return np.asarray(numbers, np.int64), np.asarray([*offsets, offset], np.int64)
