"""Rows of parquet files by number: opening reads their footers, reading takes one row group at a time."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.data.record import BadExample

_DENSEST = 10_000  # Bytes before compression a byte of a file; above it a footer is damaged.
_KEPT = 4  # Row groups held in memory, so that neighbours are read once.


class Parquet:
  """Row groups of several files with the same columns.

  Args:
    name: of the source, for messages.
    paths: the files; one that cannot be opened is named in the log and left out.
    columns: what is read; for each, names of which the first that the file has is taken.

  Attributes:
    groups: [(number of the file, number of the row group in it, rows, bytes of all columns before compression)].
    broken: {path: reason} of the files left out.

  Raises:
    SphinxError: a file has none of the names of a column, or no file can be opened.
  """

  def __init__(self, name: str, paths: Sequence[Path], columns: Sequence[Sequence[str]]):
    self._name, self._paths, self._wanted = name, paths, columns
    self._columns: dict[int, list[str]] = {}
    self.groups: list[tuple[int, int, int, int]] = []
    self.broken: dict[str, str] = {}
    for number, path in enumerate(Progress(paths, what=f'{name}: files')):
      self._open(number, path)
    if self.broken:
      log.warning(
        "source '%s': %d of %d files cannot be opened: %s",
        name,
        len(self.broken),
        len(paths),
        '; '.join(f'{path}: {why}' for path, why in list(self.broken.items())[:3]),
      )
    if not any(rows for _, _, rows, _ in self.groups):
      raise errors.make(
        f"source '{name}'",
        f'no rows in {len(paths)} files ({paths[0]}, ...)',
        'the official parquet files',
        'download them again',
      )
    self._cached = functools.lru_cache(_KEPT)(self._read)

  def row(self, file: int, group: int, row: int) -> list[Any]:
    """The columns of a row. Raises BadExample ('damaged file')."""
    try:
      return [column[row].as_py() for column in self._cached(file, group)]
    except _errors() as error:
      raise BadExample(
        'damaged file', f'{self._paths[file]}, row group {group}: {error}'
      ) from error

  def column(self, file: int, group: int) -> list[Any]:
    """All values of the first column of a row group. Raises BadExample ('damaged file')."""
    try:
      return self._read(file, group)[0].to_pylist()
    except _errors() as error:
      raise BadExample(
        'damaged file', f'{self._paths[file]}, row group {group}: {error}'
      ) from error

  def where(self, file: int) -> Path:
    return self._paths[file]

  def whole(self, file: int, column: str) -> list[Any] | None:
    """A (small) column of a whole file, None where there is none or it cannot be read."""
    import pyarrow.parquet

    try:
      return (
        pyarrow.parquet.read_table(self._paths[file], columns=[column]).column(column).to_pylist()
      )
    except (KeyError, *_errors()):
      return None

  def _open(self, number: int, path: Path) -> None:
    import pyarrow.parquet

    try:
      with pyarrow.parquet.ParquetFile(path) as opened:
        names, footer = opened.schema_arrow.names, opened.metadata
        columns = [self._column(path, names, choices) for choices in self._wanted]
        # Of a damaged footer, metadata of single columns would abort the process in Arrow's C++.
        groups = [
          (number, i, footer.row_group(i).num_rows, footer.row_group(i).total_byte_size)
          for i in range(footer.num_row_groups)
        ]
        most = _DENSEST * path.stat().st_size
        possible = all(0 <= rows <= most and 0 <= size <= most for _, _, rows, size in groups)
        if not possible or sum(group[2] for group in groups) != footer.num_rows:
          raise OSError('impossible numbers of rows or bytes in its footer')
    except _errors() as error:
      self.broken[str(path)] = ' '.join(str(error).split())
    else:
      self._columns[number] = columns
      self.groups += groups

  def _column(self, path: Path, names: Sequence[str], choices: Sequence[str]) -> str:
    for choice in choices:
      if choice in names:
        return choice
    raise errors.make(
      f"source '{self._name}'",
      f"'{path}' with the columns {', '.join(names)}",
      f'one of {", ".join(choices)}',
      'name the right one in the settings of the source',
    )

  def _read(self, file: int, group: int) -> list:
    import pyarrow.parquet

    columns = self._columns[file]
    with pyarrow.parquet.ParquetFile(self._paths[file]) as opened:
      table = opened.read_row_group(group, columns=columns)
    return [table.column(column) for column in columns]


def _errors() -> tuple[type[Exception], ...]:
  import pyarrow

  return OSError, pyarrow.ArrowException, UnicodeDecodeError
