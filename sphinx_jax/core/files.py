"""Small files, local or in a bucket: atomic writes, JSON and JSON lines."""

import json
import os
from typing import Any

from etils import epath

from sphinx_jax.core import errors

Path = str | os.PathLike


def is_remote(path: Path) -> bool:
  """Returns whether a path is in a bucket, where files cannot be appended to or renamed cheaply."""
  return '://' in os.fspath(path)


def write_atomic(path: Path, content: str | bytes) -> None:
  """Writes a file so that it is complete or absent, also after a kill.

  A local file is written under the temporary name `NAME.tmp` and then renamed. An object in a
  bucket appears only when it is complete, so it is written directly.
  """
  path = epath.Path(path)
  data = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    path.write_bytes(data)
    return
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_bytes(data)
  temporary.replace(path)


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
  """Writes a value as JSON, atomically."""
  write_atomic(path, json.dumps(value, indent=indent))


def read_jsonl(path: Path, drop_partial: bool = False) -> list[Any]:
  """Returns the values of a file of JSON lines, in order.

  Args:
    path: a local file or an object in a bucket. Blank lines are skipped.
    drop_partial: leave out a last line without a newline, which a killed program leaves behind.

  Raises:
    SphinxError: the file cannot be read, or a line is not JSON; the message has its number.
  """
  try:
    lines = epath.Path(path).read_text().split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.make(
      f"file '{path}'", str(error), 'a readable file of JSON lines', 'check the path'
    ) from error
  if drop_partial:
    lines.pop()
  values = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      values.append(json.loads(line))
    except ValueError as error:
      raise errors.make(
        f"file '{path}', line {number}", repr(line[:60]), 'JSON', f'correct the line ({error})'
      ) from error
  return values
