"""Boxes, points and keypoints as text, and the parser that reads them back.

Coordinates are in [0, 1] on the padded square image and are written with a fixed number of decimals
(docs/official_sphinx.md, "Boxes and points in text"). A box is `[x1, y1, x2, y2]`. Several boxes
share one pair of brackets and are joined by `; `. A grounded phrase is
`<p>phrase</p>[x1, y1, x2, y2]`. A keypoint is its name followed by `[x, y]`.
"""

import re
from collections.abc import Iterable, Sequence

Numbers = tuple[float, ...]

# COCO's keypoints in COCO's order, spelled as in our text.
KEYPOINTS = (
  'nose',
  'left eye',
  'right eye',
  'left ear',
  'right ear',
  'left shoulder',
  'right shoulder',
  'left elbow',
  'right elbow',
  'left wrist',
  'right wrist',
  'left hip',
  'right hip',
  'left knee',
  'right knee',
  'left ankle',
  'right ankle',
)

_BRACKET = re.compile(r'\[([^\[\]]*)\]')
# At most four digits before the dot: a model may emit a thousand digits, which float() would read
# as infinity.
_NUMBER = re.compile(r'-?(\d{1,4}(\.\d{0,16})?|\.\d{1,16})', re.ASCII)
_AND = re.compile(r'^and\b', re.IGNORECASE)


def _format_numbers(numbers: Sequence[float], decimals: int) -> str:
  # Clipped below 1, so that every number has the same width and starts with '0.'.
  top = 1.0 - 10.0**-decimals
  return ', '.join(f'{min(max(float(n), 0.0), top):.{decimals}f}' for n in numbers)


def format_box(box: Sequence[float], decimals: int = 2) -> str:
  """Formats `(x1, y1, x2, y2)` in [0, 1] as `"[0.25, 0.31, 0.50, 0.62]"`.

  Numbers are clipped to [0, 1 - 10**-decimals].
  """
  return f'[{_format_numbers(box, decimals)}]'


def format_boxes(boxes: Iterable[Sequence[float]], decimals: int = 2) -> str:
  """Formats several boxes in one pair of brackets.

  Two boxes give `"[0.10, 0.20, 0.30, 0.40; 0.50, 0.60, 0.70, 0.80]"`.
  """
  return '[' + '; '.join(_format_numbers(box, decimals) for box in boxes) + ']'


def format_point(point: Sequence[float], decimals: int = 2) -> str:
  """Formats `(x, y)` in [0, 1] as `"[0.25, 0.31]"`, clipped as in `format_box`."""
  return f'[{_format_numbers(point, decimals)}]'


def format_phrase(phrase: str, boxes: Iterable[Sequence[float]], decimals: int = 2) -> str:
  """Formats a grounded phrase: `"<p>red circle</p>[0.10, 0.20, 0.30, 0.40]"`."""
  return f'<p>{phrase}</p>{format_boxes(boxes, decimals)}'


def format_keypoints(points: Iterable[tuple[str, Sequence[float]]], decimals: int = 2) -> str:
  """Formats `[(name, (x, y)), ...]` as `"nose [0.50, 0.20], left eye [0.48, 0.18]"`."""
  return ', '.join(f'{name} {format_point(point, decimals)}' for name, point in points)


def parse_groups(text: str) -> list[tuple[str, list[Numbers]]]:
  """Parses `label [numbers; numbers]` groups in the text of a model.

  It never raises. Parts that are not 2 or 4 numbers are dropped, and so are brackets without a
  valid part or without an end.

  Returns:
    (label, [tuple of 2 or 4 floats, ...]) of each group, in the order of the text. The label is the
    `<p>phrase</p>` right before the bracket. Without one it is the text since the previous bracket,
    stripped of separators and of a leading "and", which may be empty.
  """
  groups, end = [], 0
  for match in _BRACKET.finditer(text):
    parts = [_parse_numbers(part) for part in match[1].split(';')]
    numbers = [part for part in parts if part is not None]
    if numbers:
      groups.append((_label(text[end : match.start()]), numbers))
    end = match.end()
  return groups


def _parse_numbers(part: str) -> Numbers | None:
  words = [word.strip() for word in part.split(',')]
  if len(words) not in (2, 4) or not all(_NUMBER.fullmatch(word) for word in words):
    return None
  return tuple(float(word) for word in words)


def _label(before: str) -> str:
  text, closed, rest = before.rpartition('</p>')
  _, opened, phrase = text.rpartition('<p>')
  if closed and opened and not rest.strip():
    return phrase.strip()  # An earlier phrase without a bracket is not part of the label.
  return _AND.sub('', before.strip(' \t\r\n,;:.')).strip()
