"""Text without images: RefinedWeb, and plain text files.

`RefinedWeb` (https://huggingface.co/datasets/tiiuae/falcon-refinedweb; ODC-By 1.0, and
CommonCrawl's terms of use):

    root/data/train-00000-of-05534-b8fc5348cbe605a5.parquet     columns content, url, timestamp,
                                                                dump, segment, image_urls

or the parquet files in root itself. `PlainText` reads the user's own files:

    root/**/*.txt       UTF-8. A document is a line, a paragraph (up to a blank line) or a file.

A document that is longer than a row of a batch is cut into pieces, and no text is lost. An item is
a piece of about `words` words of 6 bytes each, so that opening needs only sizes: a document of b
bytes gives ceil(b / (6 words)) pieces of the same number of characters, cut at the next white
space. To know the size of every document of RefinedWeb, opening would have to read all of it. Its
documents are therefore cut together: the documents of a row group (1,000), joined with blank
lines, are one text. Its size is the one in the file's footer, which includes the urls.

With words=0 an item is one document of any length. The row of a batch then loses the end of a long
document or, with too_long='skip', all of it.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.parquet import Parquet

_BYTES_PER_WORD = 6  # With the space after it.
_SPACE_REACH = 100  # Characters in which to look for white space. Chinese has none.
_SPACE = re.compile(r'\s')


def piece_count(size: int, words: int) -> int:
  """The number of pieces of about `words` words into which a text of `size` bytes is cut."""
  return max(1, -(-size // (_BYTES_PER_WORD * words))) if words else 1


def piece(text: str, number: int, count: int) -> str:
  """Returns piece `number` of `count`. All pieces joined are the text."""
  return text[_cut_position(text, number, count) : _cut_position(text, number + 1, count)]


def _cut_position(text: str, number: int, count: int) -> int:
  """Where piece `number` begins."""
  if number == 0:
    return 0
  if number == count:
    return len(text)
  position = number * len(text) // count
  space = _SPACE.search(text, position, position + _SPACE_REACH)
  return space.start() if space else position


class _Text(Family):
  """Base class: checks `words`, and makes items of text."""

  TASKS = ('text',)
  SPLITS = ('train',)

  def _check_words(self, words: int) -> None:
    if isinstance(words, bool) or not isinstance(words, int) or words < 0:
      raise self._error(f'words {words!r}', 'a whole number, 0 for whole documents', 'correct it')

  def _make_item(self, name: str, text: str) -> Item:
    if not text.strip():
      raise BadExample('empty text', f'{name} has no words')
    return Item(name, (), {'text': text.strip(), 'document': True})


class RefinedWeb(_Text):
  """RefinedWeb, read one row group at a time.

  Neighbours are read quickly. In random order every item reads its row group.

  Settings:
    files: pattern or list of the parquet files under root. '' selects all.
    words: approximate length of an item.
    column: column of the text.
  """

  NAME = 'refinedweb'
  PATTERN = '**/*.parquet'

  def _open(
    self, *, files: str | Sequence[str] = '', words: int = 256, column: str = 'content'
  ) -> None:
    self._check_words(words)
    self._words = words
    self._file = Parquet(self.NAME, self._list_files(self.root, files), [(column,)])
    self.broken = self._file.broken
    # Items of each row group.
    self._counts = [
      piece_count(group.size, words) if words and group.rows else group.rows
      for group in self._file.groups
    ]
    self._ends = np.cumsum(self._counts)
    self._last_group: tuple[int, str] = (-1, '')  # A row group and its text.

  def __len__(self) -> int:
    return int(self._ends[-1])

  def item(self, index: int) -> Item:
    """Raises BadExample ('empty text', 'damaged file', 'malformed record')."""
    number = int(np.searchsorted(self._ends, index, side='right'))
    group = self._file.groups[number]
    position = index - int(self._ends[number]) + self._counts[number]
    name = f'{self._file.path(group.file).stem}/{group.group}/{position}'
    if self._words:
      text = piece(self._group_text(number), position, self._counts[number])
    else:
      text = self._file.row(group.file, group.group, position)[0]
      if not isinstance(text, str):
        raise BadExample('malformed record', f'{name}: a {type(text).__name__} is not text')
    return self._make_item(name, text)

  def _group_text(self, number: int) -> str:
    last_number, text = self._last_group
    if last_number != number:
      group = self._file.groups[number]
      documents = self._file.column(group.file, group.group)
      text = '\n\n'.join(document for document in documents if isinstance(document, str))
      self._last_group = number, text
    return text


class PlainText(_Text):
  """Text files. Opening reads them once to find their documents. The text stays on disk.

  Settings:
    files: pattern or list of the files under root. '' selects all .txt files in all directories.
    document: 'line', 'paragraph' or 'file'.
    words: approximate length of an item. 0 keeps documents whole.
  """

  NAME = 'plain_text'
  PATTERN = '**/*.txt'
  DOCUMENTS = ('line', 'paragraph', 'file')

  def _open(
    self, *, files: str | Sequence[str] = '', document: str = 'line', words: int = 256
  ) -> None:
    self._check_words(words)
    if document not in self.DOCUMENTS:
      raise errors.unknown(f'document of {self._who()}', document, self.DOCUMENTS)
    self._paths = self._list_files(self.root, files)
    documents = [
      (number, begin, size, piece_count(size, words))
      for number, path in enumerate(Progress(self._paths, what='plain_text: files'))
      for begin, size in self._find_documents(path, document)
    ]
    if not documents:
      raise self._error(
        f'{len(self._paths)} empty files ({self._paths[0]}, ...)', 'text', 'check the files'
      )
    # [documents, (file, first byte, bytes, pieces)]
    self._documents = np.array(documents, np.int64)
    self._ends = np.cumsum(self._documents[:, 3])
    self._last_document: tuple[int, str] = (-1, '')  # A document and its text.

  def __len__(self) -> int:
    return int(self._ends[-1])

  def item(self, index: int) -> Item:
    """Raises BadExample ('empty text', 'not utf-8', 'missing text')."""
    number = int(np.searchsorted(self._ends, index, side='right'))
    file, begin, size, count = (int(value) for value in self._documents[number])
    path = self._paths[file]
    position = index - int(self._ends[number]) + count
    short_path = path.name if path == self.root else path.relative_to(self.root).as_posix()
    name = f'{short_path}/{begin}'
    if count > 1:
      name += f'/{position}'
    last_number, text = self._last_document
    if last_number != number:
      text = _read_text(path, name, begin, size)
      self._last_document = number, text
    return self._make_item(name, piece(text, position, count))

  def _find_documents(self, path: Path, document: str) -> Iterator[tuple[int, int]]:
    """(first byte, bytes) of the documents of a file that are not blank."""
    try:
      yield from _find_documents(path, document)
    except OSError as error:
      raise self._error(
        f'{error.strerror} for {str(path)!r}', 'a readable file', 'check root'
      ) from error


def _find_documents(path: Path, document: str) -> Iterator[tuple[int, int]]:
  if document == 'file':
    if path.stat().st_size:
      yield 0, path.stat().st_size
    return
  with open(path, 'rb') as file:
    begin = end = 0
    for line in file:
      line_begin, end = end, end + len(line)
      if document == 'line':
        if line.strip():
          yield line_begin, len(line)
      elif not line.strip():  # A blank line ends a paragraph.
        if line_begin > begin:
          yield begin, line_begin - begin
        begin = end
    if document == 'paragraph' and end > begin:
      yield begin, end - begin


def _read_text(path: Path, name: str, begin: int, size: int) -> str:
  try:
    with open(path, 'rb') as file:
      file.seek(begin)
      return file.read(size).decode('utf-8-sig')
  except OSError as error:
    raise BadExample('missing text', f'{name}: {error}') from error
  except UnicodeDecodeError as error:
    raise BadExample('not utf-8', f'{name}: {error}') from error
