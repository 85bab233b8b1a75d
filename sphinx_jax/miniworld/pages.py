"""Scenes of a white document page with 3 to 6 blocks that look like their DocLayNet class."""

from collections.abc import Sequence

import numpy as np

from sphinx_jax.miniworld.draw import DARK, WHITE, Box, Canvas, Color, jitter

LABELS = (
  'Caption',
  'Footnote',
  'Formula',
  'List-item',
  'Page-footer',
  'Page-header',
  'Picture',
  'Section-header',
  'Table',
  'Text',
  'Title',
)
PX = 1 / 64  # Blocks are drawn in 64ths of the page.
ROWS = 8  # Rows of equal height of a page.
_TALL = ('Text', 'List-item', 'Table', 'Picture')  # Take two rows. All others take one.
_BODY = ('Text', 'List-item', 'Table', 'Picture', 'Formula', 'Section-header')
_BODY_WEIGHTS = (0.27, 0.16, 0.16, 0.16, 0.12, 0.13)
_GRAY, _PALE = (120, 122, 128), (170, 172, 180)


def _lines(
  canvas: Canvas,
  box: Box,
  rng: np.random.Generator,
  color: Color,
  thick: float = 1.0,
  period: float = 3.0,
  last: tuple[float, float] = (0.4, 0.9),
) -> None:
  """Draws rows of greeked text that fill the box. The last row ends early."""
  x1, y1, x2, y2 = box
  rows = max(1, int((y2 - y1 - thick * PX) / (period * PX) + 1e-6) + 1)
  step = (y2 - y1 - thick * PX) / max(rows - 1, 1)
  for row in range(rows):
    top = y1 + row * step
    right = x2 if row < rows - 1 or rows == 1 else x1 + (x2 - x1) * rng.uniform(*last)
    canvas.rectangle((x1, top, right, top + thick * PX), color)


def _text(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  _lines(canvas, box, rng, _GRAY)


def _title(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """One heavy black row of block letters."""
  x1, y1, x2, y2 = box
  x = x1
  while x < x2 - 2 * PX:
    right = min(x + rng.uniform(4, 8) * PX, x2)
    canvas.rectangle((x, y1, x2 if x2 - right < 3 * PX else right, y2), (16, 16, 20))
    x = right + 1.2 * PX if x2 - right >= 3 * PX else x2


def _section_header(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """A dark blue bar after a number box."""
  x1, y1, x2, y2 = box
  canvas.rectangle((x1, y1, x1 + 4 * PX, y2), (24, 60, 150))
  canvas.rectangle((x1 + 5.5 * PX, y1, x2, y2), (24, 60, 150))


def _list_item(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  x1, y1, x2, y2 = box
  side = 3.5 * PX
  canvas.ellipse((x1, y1, x1 + side, y1 + side), (200, 40, 40))
  _lines(canvas, (x1 + 6 * PX, y1 + PX, x2, y2), rng, (70, 72, 78), thick=1.25, period=3.4)


def _table(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  x1, y1, x2, y2 = box
  rows, columns = int(rng.integers(3, 5)), int(rng.integers(3, 5))
  head = y1 + (y2 - y1) / rows
  canvas.rectangle(box, (244, 246, 250))
  canvas.rectangle((x1, y1, x2, head), (150, 190, 170))
  for k in range(rows + 1):
    y = y1 + (y2 - y1 - 0.8 * PX) * k / rows
    canvas.rectangle((x1, y, x2, y + 0.8 * PX), DARK)
  for k in range(columns + 1):
    x = x1 + (x2 - x1 - 0.8 * PX) * k / columns
    canvas.rectangle((x, y1, x + 0.8 * PX, y2), DARK)


def _picture(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """A small landscape: sky, sun and a hill."""
  x1, y1, x2, y2 = box
  width, height = x2 - x1, y2 - y1
  canvas.rectangle(box, jitter((120, 186, 236), rng))
  x, radius = x1 + width * rng.uniform(0.2, 0.8), 0.15 * min(width, height)
  canvas.ellipse(
    (x - radius, y1 + height * 0.3 - radius, x + radius, y1 + height * 0.3 + radius), (252, 214, 60)
  )
  peak = x1 + width * rng.uniform(0.3, 0.7)
  hill = jitter((70, 150, 80), rng)
  canvas.polygon(
    [
      (x1, y2 - PX / 4),
      (x1, y1 + height * 0.72),
      (peak, y1 + height * 0.45),
      (x2 - PX / 4, y1 + height * 0.75),
      (x2 - PX / 4, y2 - PX / 4),
    ],
    hill,
  )


def _caption(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """Two short orange-brown rows."""
  _lines(canvas, box, rng, (206, 124, 40), thick=1.5, period=3.5, last=(0.5, 0.8))


def _formula(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """A purple row of symbols: x = a fraction, with its number far to the right."""
  x1, y1, x2, y2 = box
  middle, ink = (y1 + y2) / 2, (128, 40, 150)
  canvas.line((x1 + PX, y1 + 2 * PX), (x1 + 5 * PX, y2 - 2 * PX), 1.2 * PX, ink)
  canvas.line((x1 + 5 * PX, y1 + 2 * PX), (x1 + PX, y2 - 2 * PX), 1.2 * PX, ink)
  for y in (middle - 1.6 * PX, middle + 0.6 * PX):
    canvas.rectangle((x1 + 8 * PX, y, x1 + 12 * PX, y + PX), ink)
  right = x2 - 8 * PX
  canvas.rectangle((x1 + 15 * PX, middle - PX / 2, right, middle + PX / 2), ink)
  center = (x1 + 15 * PX + right) / 2
  canvas.rectangle((center - 4 * PX, y1, center + 4 * PX, middle - 1.5 * PX), ink)
  canvas.rectangle((center - 3 * PX, middle + 1.5 * PX, center + 3 * PX, y2), ink)
  canvas.ellipse((x2 - 4 * PX, middle - 2 * PX, x2, middle + 2 * PX), ink, ring=PX)


def _footnote(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """A short rule with small pale rows under it."""
  x1, y1, x2, y2 = box
  canvas.rectangle((x1, y1, x1 + 14 * PX, y1 + PX), DARK)
  _lines(canvas, (x1, y1 + 2.5 * PX, x2, y2), rng, _PALE, thick=1.0, period=2.2)


def _page_header(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """Running words at both ends over a full rule."""
  x1, y1, x2, y2 = box
  canvas.rectangle((x1, y2 - PX, x2, y2), (30, 140, 140))
  canvas.rectangle((x1, y1, x1 + 16 * PX, y2 - 2.5 * PX), (30, 140, 140))
  canvas.rectangle((x2 - 10 * PX, y1, x2, y2 - 2.5 * PX), (30, 140, 140))


def _page_footer(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
  """A page number between two dashes."""
  x1, y1, x2, y2 = box
  middle, center = (y1 + y2) / 2, (x1 + x2) / 2
  canvas.rectangle((x1, middle - PX / 2, center - 4.5 * PX, middle + PX / 2), _GRAY)
  canvas.rectangle((center + 4.5 * PX, middle - PX / 2, x2, middle + PX / 2), _GRAY)
  canvas.rectangle((center - 3 * PX, y1, center - 0.6 * PX, y2), DARK)
  canvas.rectangle((center + 0.6 * PX, y1, center + 3 * PX, y2), DARK)


_LOOKS = {
  'Caption': _caption,
  'Footnote': _footnote,
  'Formula': _formula,
  'List-item': _list_item,
  'Page-footer': _page_footer,
  'Page-header': _page_header,
  'Picture': _picture,
  'Section-header': _section_header,
  'Table': _table,
  'Text': _text,
  'Title': _title,
}


def paint(canvas: Canvas, label: str, box: Box, rng: np.random.Generator) -> list[float]:
  """Draws one block of a class of LABELS inside `box`; returns its tight box."""
  canvas.begin()
  _LOOKS[label](canvas, box, rng)
  return canvas.box()


def _labels(rng: np.random.Generator) -> list[str]:
  """Returns 3 to 6 classes in a plausible order from top to bottom."""
  count = int(rng.integers(3, 7))
  top = [label for label, share in (('Page-header', 0.35), ('Title', 0.4)) if rng.random() < share]
  bottom = [
    label for label, share in (('Footnote', 0.3), ('Page-footer', 0.4)) if rng.random() < share
  ]
  body = []
  while len(top) + len(body) + len(bottom) < count or not body:
    label = _BODY[int(rng.choice(len(_BODY), p=_BODY_WEIGHTS))]
    if label == 'Section-header' and body[-1:] == ['Section-header']:
      continue
    body.append(label)
    if label in ('Table', 'Picture') and rng.random() < 0.6:
      body.append('Caption')
  labels = top + body + bottom
  return labels if 3 <= len(labels) <= 6 else _labels(rng)


def _span(rng: np.random.Generator, label: str) -> tuple[float, float]:
  """Returns the left and right edge of a block."""
  share = {
    'Title': 0.75,
    'Section-header': 0.6,
    'Caption': 0.65,
    'Formula': 0.85,
    'Page-footer': 0.55,
    'Picture': 0.75,
    'Table': 0.9,
    'Footnote': 0.8,
  }.get(label, 1.0)
  left, right = rng.uniform(4, 5) * PX, 1 - rng.uniform(4, 5) * PX
  spare = (right - left) * (1 - share)
  if label not in ('Section-header', 'Footnote', 'Text', 'List-item', 'Page-header'):
    return left + spare / 2, right - spare / 2
  return left, right - spare


def _free_row_weights(labels: Sequence[str]) -> np.ndarray:
  """The probabilities that a free row goes above each block, and below the last one."""
  above = [0.0 if label in ('Page-header', 'Caption') else 1.0 for label in labels]
  bottom = [k for k, label in enumerate(labels) if label in ('Footnote', 'Page-footer')]
  for k in bottom:
    above[k] = 2.0 if k == bottom[0] else 0.0
  weights = np.array(above + [0.0 if bottom else 1.0])
  return weights / weights.sum()


def draw(rng: np.random.Generator, size: int) -> tuple[Canvas, list[dict]]:
  """Draws one page; returns (canvas, [{'label', 'box'}] in reading order)."""
  while True:
    labels = _labels(rng)
    rows = [2 if label in _TALL else 1 for label in labels]
    if sum(rows) <= ROWS:
      break
  canvas = Canvas(size)
  canvas.rectangle((0, 0, 1, 1), tuple(int(c - rng.integers(0, 8)) for c in WHITE))
  free = rng.multinomial(ROWS - sum(rows), _free_row_weights(labels))
  row, blocks = 0, []
  for label, above, height in zip(labels, free.tolist(), rows):
    row += above
    x1, x2 = _span(rng, label)
    box = (x1, row / ROWS + PX, x2, (row + height) / ROWS - PX)
    blocks.append({'label': label, 'box': paint(canvas, label, box, rng)})
    row += height
  return canvas, blocks
