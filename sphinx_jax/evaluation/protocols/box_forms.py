"""Boxes in the forms of other models, rewritten as ours: [x1, y1, x2, y2] on the padded square.

Points [x, y] are rewritten, too, where they have no mark or that of Qwen-VL.

Numbers that carry a mark of their scale are converted: percent, pixels, and the location tokens of
Qwen-VL, InternVL, DeepSeek-VL2, GLM-4.5V, Kosmos-2, PaliGemma, Florence-2 and MiniGPT-v2, which are
relative to the image without padding. Numbers without a mark are on the padded square, unless the
benchmark names another form. Names of numbers (xmin, x2, w) tell their order.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from sphinx_jax.core import answers, boxes, coordinates

# Form of numbers without a mark -> function from (box, width, height) to pixels of the image.
FORMS: dict[str, Callable[[Sequence[float], int, int], boxes.Box]] = {
  'square': boxes.unpad_box,  # [0, 1] on the padded square.
  'image': lambda box, width, height: _scaled(box, width, height),
  'thousandths': lambda box, width, height: _scaled(box, width / 1000, height / 1000),
  'pixels': lambda box, width, height: _scaled(box, 1, 1),
}

UNKNOWN_SCALE = (
  'with numbers above 1 and no mark of their scale, scored as they are '
  '(name it by --config.NAME.boxes)'
)
EMPTY = 'with a box whose corners are swapped or equal'

_DECIMAL = r'-?(?:\d{1,5}(?:\.\d{0,16})?|\.\d{1,16})'
_NUMBER = re.compile(_DECIMAL, re.ASCII)
_LOOSE_NUMBER = re.compile(rf'(?<![\w.-]){_DECIMAL}(?![\w.]*\w)', re.ASCII)
_BRACKET = re.compile(r'\[([^\[\]]*)\]')
_LABEL = re.compile(
  r'<(?:ref|phrase|\|object_ref_start\||\|ref\|)>(.*?)'
  r'</?(?:ref|phrase|\|object_ref_end\||\|/ref\|)>',
  re.DOTALL,
)


def _four(unit: str) -> str:
  number = rf'{_DECIMAL}\s*{unit}'
  each = rf'[\[(]{{0,3}}{number}(?:(?:[xy]\d|[^\d\[\]%]){{1,24}}?{number}){{3}}[\])]{{0,3}}'
  return rf'{each}|\[{_DECIMAL}(?:,\s*{_DECIMAL}){{3}}\]\s*{unit}'


# What a group of marked numbers is divided by. 'patches' and 'percent' have their own functions.
_DIVISORS = {'thousandths': 1000, 'florence': 1000, 'paligemma': 1024, 'hundredths': 100}
_MARKED = re.compile(
  r'(?:<box>|<\|box_start\|>|<\|det\|>|<\|begin_of_box\|>)(?P<thousandths>.*?)'
  r'(?:</box>|<\|box_end\|>|<\|/det\|>|<\|end_of_box\|>|\Z)'
  r'|(?:<object>\s*)?(?P<patches>(?:<patch_index_\d+>|</delimiter_of_multi_objects/>)+)'
  r'(?:\s*</object>)?'
  r'|(?P<paligemma>(?:<loc\d{4}>\s*){4})(?P<name>[^<;]*)'
  r'|(?P<florence>(?:<loc_\d+>\s*)+)'
  r'|(?P<hundredths>\{(?:<\d+>){4}\})'
  rf'|(?P<percent>{_four("(?:%|percent)")})|(?P<pixels>{_four("(?:px|pixels?)")})',
  re.DOTALL,
)
# Names of the numbers of a box -> their places. A width and a height have none.
_PLACES = {'x1': 0, 'xmin': 0, 'left': 0, 'x': 0, 'y1': 1, 'ymin': 1, 'top': 1, 'y': 1}
_PLACES |= {'x2': 2, 'xmax': 2, 'right': 2, 'y2': 3, 'ymax': 3, 'bottom': 3}
_KEY = rf'["\']?\b({"|".join((*_PLACES, "w(?:idth)?|h(?:eight)?"))})["\']?\s*[:=]\s*["\']?'
_PAIR = re.compile(rf'{_KEY}({_DECIMAL}\s*(?:%|px)?)', re.IGNORECASE)
_KEYED = re.compile(rf'[\[{{(]?(?:{_PAIR.pattern}["\'\s,;]*){{4}}[\]}})]?', re.IGNORECASE)
# Boxes as JSON objects with a label, as of Qwen2.5-VL.
_OBJECT = re.compile(r'\{\s*["\'][^{}]*\}')
_QUOTED = r'"(?P<double>(?:[^"\\]|\\.)*)"|\'(?P<single>(?:[^\'\\]|\\.)*)\''
_LABEL_PAIR = re.compile(
  rf'["\'](?:label|name|class|category|object)["\']\s*:\s*(?:{_QUOTED})\s*,?'
)
_GRID = 32  # Cells of Kosmos-2 along one side of the image.
# Around converted boxes, so that they are not converted again.
_DONE = '\ue000', '\ue001'


def native(answer: str, width: int, height: int, form: str = 'square') -> str:
  """Returns an answer with its boxes as '[x1, y1, x2, y2]' in [0, 1] on the padded square.

  Points become '[x, y]'.

  Args:
    answer: text with boxes.
    width: width of the image in pixels.
    height: height of the image in pixels.
    form: key of FORMS, for numbers without a mark of their scale.
  """
  size = width, height
  text = answers.without_thought(answer).replace('−', '-')
  text = _OBJECT.sub(_label_first, _LABEL.sub(r'<p>\1</p>', text))
  text = _KEYED.sub(_in_order, text)
  text = _MARKED.sub(functools.partial(_rewrite_marked, size=size, form=form), text)
  if form != 'square':
    text = _BRACKET.sub(functools.partial(_rewrite_plain, size=size, form=form), text)
  return text.replace(_DONE[0], '[').replace(_DONE[1], ']')


def first_box(answer: str, width: int, height: int, form: str = 'square') -> boxes.Box | None:
  """Returns the first box of an answer, in [0, 1] on the padded square, or None.

  Without a box in brackets, a text with exactly four numbers is one.

  Args:
    answer: as for `native`.
    width: as for `native`.
    height: as for `native`.
    form: as for `native`.
  """
  text = native(answer, width, height, form)
  for _, group in coordinates.parse_groups(text):
    for numbers in group:
      if len(numbers) == 4:
        return numbers
  loose = [float(number) for number in _LOOSE_NUMBER.findall(text)]
  return _to_square(loose, (width, height), form) if len(loose) == 4 else None


def count_unread(sized: Iterable[tuple[Mapping, int, int]]) -> dict[str, int]:
  """Counts the answers without a box, with an empty one, and with numbers of an unknown scale.

  Args:
    sized: (entry, width and height of its image in pixels). An entry has 'answer', and optionally
      'boxes', the `form` of `native`.
  """
  without, empty, unknown = 0, 0, 0
  for entry, width, height in sized:
    form = entry.get('boxes', 'square')
    box = first_box(entry['answer'], width, height, form)
    without += box is None
    empty += box is not None and (box[0] >= box[2] or box[1] >= box[3])
    unknown += box is not None and form == 'square' and max(box) > 1
  return {'without a box': without, EMPTY: empty, UNKNOWN_SCALE: unknown}


def _rewrite_marked(match: re.Match, size: tuple[int, int], form: str) -> str:
  kind = next(
    kind for kind, text in match.groupdict().items() if text is not None and kind != 'name'
  )
  numbers = [float(number) for number in _NUMBER.findall(match[kind])]
  fours = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
  if kind == 'patches':
    indices = [int(number) for number in numbers]
    fours = [_cells(*pair) for pair in zip(indices[0::2], indices[1::2])]
  if kind == 'thousandths' and len(numbers) == 2 and 1 < max(numbers) <= 1000:
    return _written([_to_square([number / 1000 for number in numbers], size, 'image')])
  if not fours or len(fours[-1]) != 4:
    return match[0]
  if kind == 'thousandths' and (max(numbers) <= 1 or max(numbers) > 1000):
    return ''.join(f'[{", ".join(map(str, four))}]' for four in fours)
  if kind == 'percent':
    frame = 'square' if form == 'square' else 'image'
    converted = [_to_square([n / 100 for n in four], size, frame) for four in fours]
  elif kind == 'pixels':
    converted = [_to_square(four, size, 'pixels') for four in fours]
  else:
    divisor = _DIVISORS.get(kind, 1)
    order = (1, 0, 3, 2) if kind == 'paligemma' else (0, 1, 2, 3)
    converted = [_to_square([four[i] / divisor for i in order], size, 'image') for four in fours]
  label = f'<p>{match["name"].strip()}</p>' if match['name'] else ''
  return label + _written(converted)


def _label_first(match: re.Match) -> str:
  """Rewrites '{"bbox_2d": [...], "label": "cat"}' as '<p>cat</p>[...]'."""
  pair = _LABEL_PAIR.search(match[0])
  rest = match[0].replace(pair[0], '') if pair else match[0]
  brackets = _BRACKET.findall(rest)
  if not pair and len(brackets) != 1:
    return rest
  label = pair['double'] or pair['single'] if pair else ''
  return f'<p>{label or ""}</p>' + (f'[{brackets[0]}]' if len(brackets) == 1 else rest)


def _in_order(match: re.Match) -> str:
  """Rewrites four named numbers as '[x1, y1, x2, y2]'."""
  pairs = [(key.lower(), number.strip()) for key, number in _PAIR.findall(match[0])]
  places = {_PLACES[key]: number for key, number in pairs if key in _PLACES}
  sizes = {key[0]: number for key, number in pairs if key not in _PLACES}
  for place, side in ((0, 'w'), (1, 'h')):
    if place in places and side in sizes:
      low, unit = re.fullmatch(r'([-\d.]+)\s*(.*)', places[place]).groups()
      high = float(low) + float(re.match(r'[-\d.]+', sizes[side])[0])
      places[place + 2] = f'{high:.6f}{unit}'
  return f'[{", ".join(places[i] for i in range(4))}]' if len(places) == 4 else match[0]


def _rewrite_plain(match: re.Match, size: tuple[int, int], form: str) -> str:
  groups = [numbers for _, group in coordinates.parse_groups(match[0]) for numbers in group]
  if len({len(numbers) for numbers in groups}) != 1:
    return match[0]
  return _written([_to_square(numbers, size, form) for numbers in groups])


def _written(converted: Sequence[Sequence[float]]) -> str:
  text = '; '.join(', '.join(f'{number:.6f}' for number in box) for box in converted)
  return _DONE[0] + text + _DONE[1]


def _to_square(numbers: Sequence[float], size: tuple[int, int], form: str) -> tuple[float, ...]:
  """Converts a box or a point to [0, 1] on the padded square."""
  box = (*numbers, *numbers)[:4]
  return boxes.pad_box(FORMS[form](box, *size), *size)[: len(numbers)]


def _scaled(box: Sequence[float], x_scale: float, y_scale: float) -> boxes.Box:
  x1, y1, x2, y2 = box
  return x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale


def _cells(first: int, last: int) -> boxes.Box:
  """Returns the box of Kosmos-2's top left and bottom right cells, in [0, 1] of the image.

  It goes from center to center, or over whole cells if the two share a row or a column.
  """
  (top, left), (bottom, right) = divmod(first, _GRID), divmod(last, _GRID)
  low, high = (0.0, 1.0) if left == right or top == bottom else (0.5, 0.5)
  corners = left + low, top + low, right + high, bottom + high
  return tuple(corner / _GRID for corner in corners)
