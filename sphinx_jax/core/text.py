"""Text of any origin made fit to be shown, and tables with aligned columns."""

import re
from collections.abc import Sequence

import xxhash

# Control characters but the line break, the marks that reverse the text after them, and halves of
# surrogate pairs, which JSON may hold although they are no characters.
_NOT_SHOWN = re.compile('[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]')
_SURROGATE = re.compile('[\ud800-\udfff]')


def is_unicode(text: str) -> bool:
  """Whether a text has no half of a surrogate pair, which no tokenizer or file takes."""
  return text.isascii() or not _SURROGATE.search(text)


def digest(text: str) -> str:
  """Returns a hash of any text, also of one that is not unicode, as 16 hexadecimal digits."""
  return xxhash.xxh3_64_hexdigest(text.encode(errors='surrogatepass'))


def printable(text: str) -> str:
  """Returns a text that terminals, fonts and pages show without harm.

  Every line break is '\\n', a tab is four spaces, another control character is its escape
  ('\\x1b'), and half of a surrogate pair is U+FFFD.
  """
  text = text.replace('\r\n', '\n').replace('\r', '\n').replace('\t', '    ')
  text = _NOT_SHOWN.sub(lambda match: match[0].encode('unicode_escape').decode(), text)
  return _SURROGATE.sub('\ufffd', text)


def one_line(text: str, width: int) -> str:
  """Returns a printable text on one line, cut after `width` characters."""
  line = ' '.join(printable(text).split())
  return line if len(line) <= width else f'{line[: width - 1]}…'


def table(rows: Sequence[Sequence[object]], align: str) -> str:
  """Formats rows as columns of equal width.

  Args:
    rows: cells of each row, the header included; every row has `len(align)` cells.
    align: one letter a column, 'l' for left or 'r' for right.

  Returns:
    One line a row, without trailing spaces.
  """
  cells = [[printable(str(cell)).replace('\n', ' ') for cell in row] for row in rows]
  widths = [max((len(row[column]) for row in cells), default=0) for column in range(len(align))]
  lines = []
  for row in cells:
    padded = (
      cell.ljust(width) if side == 'l' else cell.rjust(width)
      for cell, width, side in zip(row, widths, align)
    )
    lines.append('  '.join(padded).rstrip())
  return '\n'.join(lines)
