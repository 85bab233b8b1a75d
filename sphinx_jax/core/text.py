"""Text tables with aligned columns, and what is no Unicode."""

from collections.abc import Sequence


def is_unicode(text: str) -> bool:
  """Whether a text has no half of a surrogate pair, which JSON and file names may hold."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def table(rows: Sequence[Sequence[object]], align: str) -> str:
  """Formats rows as columns of equal width.

  Args:
    rows: cells of each row, the header included; every row has `len(align)` cells.
    align: one letter a column, 'l' for left or 'r' for right.

  Returns:
    One line a row, without trailing spaces.
  """
  cells = [[str(cell) for cell in row] for row in rows]
  widths = [max((len(row[column]) for row in cells), default=0) for column in range(len(align))]
  lines = []
  for row in cells:
    padded = (
      cell.ljust(width) if side == 'l' else cell.rjust(width)
      for cell, width, side in zip(row, widths, align)
    )
    lines.append('  '.join(padded).rstrip())
  return '\n'.join(lines)
