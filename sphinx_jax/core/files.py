"""Files, local or in a bucket: atomic writes, and the reader of JSON and JSON lines."""

import codecs
import contextlib
import errno
import gzip
import io
import json
import os
import pathlib
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import xxhash
from etils import epath

from sphinx_jax.core import errors, file_forms

Path = str | os.PathLike

_GZIP = b'\x1f\x8b'
# Of a large file, `quick_hash` reads this many blocks, evenly spaced.
_BLOCKS, _BLOCK_BYTES = 16, 1 << 18


def is_remote(path: Path) -> bool:
  """Returns whether a path is in a bucket, where files cannot be appended to or renamed cheaply."""
  return '://' in os.fspath(path)


@contextlib.contextmanager
def writing(path: Path, what: str = 'directory') -> Iterator[None]:
  """Re-raises an OSError of the block as a SphinxError that names the output and the reason.

  An error of a file elsewhere, which the block reads, is left to the caller.

  Args:
    path: the output that the block writes.
    what: its name in the message.
  """
  try:
    yield
  except OSError as error:
    if error.filename is not None and not _is_related(error.filename, path):
      raise
    raise errors.write_failed(path, error, what) from error


def _is_related(first: Path, second: Path) -> bool:
  """Whether one of two paths is inside the other, or they are equal."""
  first, second = (pathlib.Path(os.path.abspath(path)) for path in (first, second))
  return first.is_relative_to(second) or second.is_relative_to(first)


def write_atomic(path: Path, content: str | bytes) -> None:
  """Writes a file so that it is complete or absent, also after a kill.

  A local file is written under a temporary name, `NAME.0c1d2e3f.tmp`, and then renamed. The name is
  another one in each process, as several may write the same file at once. An object in a bucket
  appears only when it is complete, so it is written directly.

  Raises:
    SphinxError: it cannot be written.
  """
  with open_atomic(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
  """Opens a file to be written as `write_atomic` does, piece by piece.

  If the block raises, the file stays as it was.

  Raises:
    SphinxError: it cannot be written.
  """
  path = epath.Path(path)
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.tmp')
  try:
    if is_remote(path):
      with tempfile.TemporaryFile() as pieces:
        yield pieces
        pieces.seek(0)
        with path.open('wb') as file:
          shutil.copyfileobj(pieces, file)
    else:
      try:
        with temporary.open('wb') as file:
          yield file
        temporary.replace(path)
      except BaseException:
        temporary.unlink(missing_ok=True)
        raise
  except OSError as error:
    if error.filename not in (None, os.fspath(path), os.fspath(temporary)):
      raise  # Of a file that the block reads.
    raise errors.write_failed(path, error, 'file') from error


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
  """Writes a value as JSON, atomically."""
  write_atomic(path, json.dumps(value, indent=indent))


def read_json(path: Path) -> Any:
  """Returns the value of a JSON file that this package wrote.

  Raises:
    SphinxError: it cannot be read, or is damaged.
  """
  try:
    return json.loads(epath.Path(path).read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise errors.make(
      f"file '{path}'", f'no readable JSON ({error})', 'what was written there', 'restore the file'
    ) from error


def read_bytes(path: Path) -> bytes:
  """Returns the content of a file, unpacked if it is gzip, whatever its name.

  Raises:
    OSError: the file cannot be read, or its gzip data are damaged.
  """
  data = epath.Path(path).read_bytes()
  if not data.startswith(_GZIP):
    return data
  with _damage_as_os_error():
    return gzip.decompress(data)


def open_seekable(path: Path) -> BinaryIO:
  """Opens a local file for random access. Of a gzip file it is an unpacked, unnamed temporary copy.

  Raises:
    OSError: the file cannot be read, or its gzip data are damaged.
  """
  file = open(path, 'rb')
  is_packed = file.read(len(_GZIP)) == _GZIP
  file.seek(0)
  if not is_packed:
    return file
  unpacked = tempfile.TemporaryFile()
  with file, gzip.open(file) as packed, _damage_as_os_error():
    shutil.copyfileobj(packed, unpacked)
  unpacked.seek(0)
  return unpacked


@contextlib.contextmanager
def _damage_as_os_error() -> Iterator[None]:
  try:
    yield
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise OSError(errno.EIO, f'damaged gzip data ({error})') from error


def is_utf16(head: bytes) -> bool:
  """Whether a text that begins with these bytes is UTF-16. Its lines cannot be cut at a byte."""
  marks = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
  return head.startswith(marks) or b'\0' in head[:8].strip(b'\0')


def begins_list(head: bytes) -> bool:
  """Whether a JSON text that begins with these bytes is a list."""
  return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b'[')


class JsonLine(NamedTuple):
  """A line of a JSON lines file.

  Attributes:
    number: from 1.
    begin: offset of its first byte in the file.
    text: its bytes.
    value: its JSON value.
  """

  number: int
  begin: int
  text: bytes
  value: Any


def scan_jsonl(file: BinaryIO, who: str, drop_partial: bool = False) -> Iterator[JsonLine]:
  """Yields the lines of a file that are not blank; one of them is in memory.

  Args:
    file: opened at its beginning.
    who: the reader and the file, for messages.
    drop_partial: as in `read_items`.

  Raises:
    SphinxError: a line is not JSON; the message has its number.
  """
  end = 0
  for number, line in enumerate(file, 1):
    begin, end = end, end + len(line)
    text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    if not text.strip():
      continue
    try:
      value = json.loads(text)
    except (ValueError, RecursionError) as error:
      is_cut = text.lstrip().startswith((b'{', b'\0')) and 'Extra data' not in str(error)
      if drop_partial and is_cut and not line.endswith(b'\n'):
        return
      shown = f'{text.rstrip()[:60].decode(errors="replace")!r}, {not_json(text, error)}'
      raise errors.make(f'{who}, line {number}', shown, 'JSON', 'correct it') from error
    yield JsonLine(number, begin, line, value)


def json_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
  """Yields (number from 1, line) of the lines that are not blank. `json.loads` takes a line."""
  for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b'\n'), 1):
    if line.strip():
      yield number, line


def not_json(data: bytes, error: Exception) -> str:
  """Returns why data are not JSON, for a message."""
  cause = 'lines that end with CR alone' if b'\r{' in data else error
  return f'not JSON ({file_forms.name(data) or cause})'


def read_items(path: Path, drop_partial: bool = False, who: str = '') -> list[tuple[str, Any]]:
  """Returns (place, value) of the items of a JSON list, or of JSON lines; 'line 3' is a place.

  Args:
    path: a local file or an object in a bucket, packed or not, UTF-8 with or without a mark at its
      beginning. Blank lines are skipped, and the last line needs no newline.
    drop_partial: leave out a last line that is the beginning of an object and has no newline, which
      a killed program leaves behind.
    who: the reader, for messages: "benchmark 'mmbench_dev'".

  Raises:
    SphinxError: the file cannot be read, or is not JSON; the message has the number of the line.
  """
  who, expected = f"{who and f'{who}: '}file '{path}'", 'a readable file of JSON lines'
  try:
    data = read_bytes(path)
  except OSError as error:
    raise errors.make(who, str(error), expected, 'check the path') from error
  if begins_list(data):
    with contextlib.suppress(ValueError, RecursionError):
      return [(f'item {number}', value) for number, value in enumerate(json.loads(data), 1)]
  if is_utf16(data[:8]):
    raise errors.make(who, 'UTF-16 text', 'UTF-8', 'save the file as UTF-8')
  lines = scan_jsonl(io.BytesIO(data), who, drop_partial)
  return [(f'line {line.number}', line.value) for line in lines]


def read_jsonl(path: Path, drop_partial: bool = False, who: str = '') -> list[Any]:
  """Returns the values of `read_items`."""
  return [value for _, value in read_items(path, drop_partial, who)]


def quick_hash(path: Path) -> str:
  """Returns size and hash of a file as text. Of a large file, 4 MiB are read."""
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    content = xxhash.xxh3_64()
    if size <= _BLOCKS * _BLOCK_BYTES:
      content.update(file.read())
    else:
      for block in range(_BLOCKS):
        file.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
        content.update(file.read(_BLOCK_BYTES))
  return f'{size} bytes, {content.hexdigest()}'
