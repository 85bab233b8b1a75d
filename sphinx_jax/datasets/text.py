"""Text alone: RefinedWeb, and plain text files. A document longer than a row of a batch is cut, and nothing of it lost.

`RefinedWeb` (https://huggingface.co/datasets/tiiuae/falcon-refinedweb; ODC-By 1.0, and CommonCrawl's terms of use):

    root/data/train-00000-of-05534-b8fc5348cbe605a5.parquet     columns content, url, timestamp, dump, segment, image_urls

or the parquet files in root itself. `PlainText` reads files of one's own:

    root/**/*.txt       UTF-8; a document is a line, a paragraph (up to a blank line) or a file

**Pieces.** An item is a piece of about `words` words, taken as six bytes each, so that an index needs sizes alone: a document
of b bytes gives ceil(b / (6 words)) pieces of the same number of characters, cut at the next white space. RefinedWeb's
documents are not counted one by one, which would mean to read all of it at opening: there the documents of a row group
(1,000), with a blank line between them, are cut as one, by the size in the file's footer, urls included. With words=0 an
item is one document, however long; what a row cannot hold of it is then lost or, at too_long='skip', all of it.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import parts
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.parquet import Parquet

_BYTES = 6  # of a word and the space after it
_REACH = 100  # characters in which white space is looked for, as Chinese has none
_SPACE = re.compile(r'\s')


def pieces(size: int, words: int) -> int:
  """How many pieces text of so many bytes is cut into."""
  return max(1, -(-size // (_BYTES * words))) if words else 1


def piece(text: str, number: int, count: int) -> str:
  """Piece `number` of `count` that together are the text."""
  return text[_cut(text, number, count) : _cut(text, number + 1, count)]


def _cut(text: str, number: int, count: int) -> int:
  if number in (0, count):
    return len(text) * (number > 0)
  place = number * len(text) // count
  space = _SPACE.search(text, place, place + _REACH)
  return space.start() if space else place


def _checked(name: str, words: int) -> int:
  if isinstance(words, bool) or not isinstance(words, int) or words < 0:
    raise errors.make(
      f"source '{name}'", f'words {words!r}', 'a whole number, 0 for whole documents', 'correct it'
    )
  return words


def _item(name: str, text: str) -> Item:
  if not text.strip():
    raise BadExample('empty text', f'{name} has no words')
  return Item(name, None, {'text': text.strip(), 'document': True})


class RefinedWeb:
  """RefinedWeb, read a row group at a time: neighbours and builds are quick; in random order each item reads its group.

  Args:
    files: pattern or list of the parquet files under root; '': all.
    words: of an item, about.
    column: of the text.
  """

  TASKS, SPLITS = ('text',), ('train',)
  PATTERN = '**/*.parquet'

  def __init__(
    self,
    root: Path,
    split: str,
    task: str,
    max_turns: int,
    files: str | Sequence[str] = '',
    words: int = 256,
    column: str = 'content',
  ):
    del split, task, max_turns
    self._words = _checked('refinedweb', words)
    self._file = Parquet(
      'refinedweb', parts.listed('refinedweb', root, files, self.PATTERN), [(column,)]
    )
    self.broken = self._file.broken
    self._counts = [
      pieces(size, words) if words and rows else rows for _, _, rows, size in self._file.groups
    ]
    self._ends = np.cumsum(self._counts)
    self._last: tuple[int, str] = (
      -1,
      '',
    )  # A row group and its text: neighbours come one after the other.

  def __len__(self) -> int:
    return int(self._ends[-1])

  def item(self, index: int) -> Item:
    """Raises BadExample ('empty text', 'damaged file', 'malformed record')."""
    number = int(np.searchsorted(self._ends, index, side='right'))
    file, group, *_ = self._file.groups[number]
    place = index - int(self._ends[number]) + self._counts[number]
    name = f'{self._file.where(file).stem}/{group}/{place}'
    if not self._words:
      text = self._file.row(file, group, place)[0]
      if not isinstance(text, str):
        raise BadExample('malformed record', f'{name}: a {type(text).__name__} is no text')
      return _item(name, text)
    last, text = self._last
    if last != number:
      text = '\n\n'.join(
        document for document in self._file.column(file, group) if isinstance(document, str)
      )
      self._last = number, text
    return _item(name, piece(text, place, self._counts[number]))


class PlainText:
  """Text files. Opening reads through them once, to find where documents begin; their text stays on disk.

  Args:
    files: pattern or list of the files under root; '': all .txt in all folders.
    document: 'line', 'paragraph' or 'file'.
    words: of an item, about; 0: whole documents.
  """

  TASKS, SPLITS = ('text',), ('train',)
  PATTERN = '**/*.txt'
  DOCUMENTS = ('line', 'paragraph', 'file')

  def __init__(
    self,
    root: Path,
    split: str,
    task: str,
    max_turns: int,
    files: str | Sequence[str] = '',
    document: str = 'line',
    words: int = 256,
  ):
    del split, task, max_turns
    _checked('plain_text', words)
    if document not in self.DOCUMENTS:
      raise errors.unknown("document of source 'plain_text'", document, self.DOCUMENTS)
    self._root, self._paths = root, parts.listed('plain_text', root, files, self.PATTERN)
    files_read = enumerate(Progress(self._paths, what='plain_text: files'))
    places = [
      (number, begin, size, pieces(size, words))
      for number, path in files_read
      for begin, size in _documents(path, document)
    ]
    if not places:
      raise errors.make(
        "source 'plain_text'",
        f'{len(self._paths)} empty files ({self._paths[0]}, ...)',
        'text',
        'check the files',
      )
    self._places = np.array(places, np.int64)
    self._ends = np.cumsum(self._places[:, 3])
    self._last: tuple[int, str] = (-1, '')

  def __len__(self) -> int:
    return int(self._ends[-1])

  def item(self, index: int) -> Item:
    """Raises BadExample ('empty text', 'not utf-8', 'missing text')."""
    number = int(np.searchsorted(self._ends, index, side='right'))
    file, begin, size, count = (int(value) for value in self._places[number])
    path = self._paths[file]
    place = index - int(self._ends[number]) + count
    short = path.relative_to(self._root).as_posix() if path != self._root else path.name
    name = f'{short}/{begin}' + f'/{place}' * (count > 1)
    last, text = self._last
    if last != number:
      text = _text(path, name, begin, size)
      self._last = number, text
    return _item(name, piece(text, place, count))


def _text(path: Path, name: str, begin: int, size: int) -> str:
  try:
    with open(path, 'rb') as file:
      file.seek(begin)
      return file.read(size).decode('utf-8-sig')
  except OSError as error:
    raise BadExample('missing text', f'{name}: {error}') from error
  except UnicodeDecodeError as error:
    raise BadExample('not utf-8', f'{name}: {error}') from error


def _documents(path: Path, document: str) -> Iterator[tuple[int, int]]:
  """(first byte, bytes) of the documents of a file that are not blank."""
  try:
    if document == 'file':
      if path.stat().st_size:
        yield 0, path.stat().st_size
      return
    with open(path, 'rb') as file:
      begin = end = 0
      for line in file:
        end += len(line)
        if document == 'line' and line.strip():
          yield end - len(line), len(line)
        elif document == 'paragraph' and not line.strip():
          yield from [(begin, end - len(line) - begin)] * (end - len(line) > begin)
          begin = end
      if document == 'paragraph' and end > begin:
        yield begin, end - begin
  except OSError as error:
    raise errors.make(
      "source 'plain_text'", f'{error.strerror} for {str(path)!r}', 'a readable file', 'check root'
    ) from error
