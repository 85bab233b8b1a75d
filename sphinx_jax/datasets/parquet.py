"""Rows of parquet files by number: opening reads the footers, reading takes whole row groups."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.data.record import BadExample

_CACHED_GROUPS = 4  # Row groups held in memory, so that neighbours are read once.


class RowGroup(NamedTuple):
  """A row group.

  Attributes:
    file: number of the file.
    group: number of the row group in the file.
    rows: number of rows.
    size: bytes of all columns before compression.
  """

  file: int
  group: int
  rows: int
  size: int


class Parquet:
  """The row groups of several files with the same columns.

  Args:
    name: name of the source, for messages.
    paths: the files. One that cannot be opened is logged and left out.
    columns: the columns to read. Each is a list of names, of which the first in the file is taken.

  Attributes:
    groups: the row groups of all files.
    broken: path -> reason, of the files left out.

  Raises:
    SphinxError: a file has none of the names of a column, or no file can be opened.
  """

  def __init__(self, name: str, paths: Sequence[Path], columns: Sequence[Sequence[str]]) -> None:
    self._name, self._paths, self._wanted = name, paths, columns
    self._columns: dict[int, list[str]] = {}
    self.groups: list[RowGroup] = []
    self.broken: dict[str, str] = {}
    for number, path in enumerate(Progress(paths, what=f'{name}: files')):
      self._open(number, path)
    if self.broken:
      log.warning(
        "source '%s': %d of %d files cannot be opened: %s",
        name,
        len(self.broken),
        len(paths),
        '; '.join(f'{path}: {reason}' for path, reason in list(self.broken.items())[:3]),
      )
    if not any(group.rows for group in self.groups):
      raise errors.make(
        f"source '{name}'",
        f'no rows in {len(paths)} files ({paths[0]}, ...)',
        'the published parquet files',
        'download them again',
      )
    self._read_cached = functools.lru_cache(_CACHED_GROUPS)(self._read)

  def row(self, file: int, group: int, row: int) -> list[Any]:
    """The columns of a row. Raises BadExample ('damaged file')."""
    try:
      return [column[row].as_py() for column in self._read_cached(file, group)]
    except _read_errors() as error:
      raise self._damaged(file, group, error) from error

  def column(self, file: int, group: int) -> list[Any]:
    """All values of the first column of a row group. Raises BadExample ('damaged file')."""
    try:
      return self._read(file, group)[0].to_pylist()
    except _read_errors() as error:
      raise self._damaged(file, group, error) from error

  def path(self, file: int) -> Path:
    """The path of a file."""
    return self._paths[file]

  def file_column(self, file: int, column: str) -> list[Any] | None:
    """A (small) column of a whole file, or None if it is missing or cannot be read."""
    import pyarrow.parquet

    try:
      table = pyarrow.parquet.read_table(self._paths[file], columns=[column])
      return table.column(column).to_pylist()
    except (KeyError, *_read_errors()):
      return None

  def _open(self, number: int, path: Path) -> None:
    import pyarrow.parquet

    try:
      with pyarrow.parquet.ParquetFile(path) as opened:
        names, footer = opened.schema_arrow.names, opened.metadata
        columns = [self._choose_column(path, names, choices) for choices in self._wanted]
        # The metadata of a row group, not of its columns: for a damaged footer, Arrow's C++ aborts
        # the process when it reads those.
        groups = []
        for group in range(footer.num_row_groups):
          metadata = footer.row_group(group)
          groups.append(RowGroup(number, group, metadata.num_rows, metadata.total_byte_size))
    except _read_errors() as error:
      self.broken[str(path)] = ' '.join(str(error).split())
    else:
      self._columns[number] = columns
      self.groups += groups

  def _choose_column(self, path: Path, names: Sequence[str], choices: Sequence[str]) -> str:
    for choice in choices:
      if choice in names:
        return choice
    raise errors.make(
      f"source '{self._name}'",
      f"'{path}' with the columns {', '.join(names)}",
      f'one of {", ".join(choices)}',
      'name the right one in the settings of the source',
    )

  def _read(self, file: int, group: int) -> list[Any]:
    import pyarrow.parquet

    columns = self._columns[file]
    with pyarrow.parquet.ParquetFile(self._paths[file]) as opened:
      table = opened.read_row_group(group, columns=columns)
    return [table.column(column) for column in columns]

  def _damaged(self, file: int, group: int, error: Exception) -> BadExample:
    return BadExample('damaged file', f'{self._paths[file]}, row group {group}: {error}')


def _read_errors() -> tuple[type[Exception], ...]:
  import pyarrow

  return OSError, pyarrow.ArrowException, UnicodeDecodeError
