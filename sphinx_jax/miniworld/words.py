"""Scenes of one or two short words in a 5 x 7 pixel font.

The words are drawn in capitals, and their text is in lower case: case is not part of reading here.
"""

import re

import numpy as np

from sphinx_jax.miniworld.draw import COLORS, Canvas, Color, Point, jitter, lattice, shade

LEXICON = tuple(
  """
sun box key dog cat fox owl map jam egg ice web
boat fish duck wolf milk rose moon rain fire lamp jazz taxi
""".split()
)

# Rows from top to bottom, 5 bits each, the leftmost pixel first.
_GLYPHS = {
  letter: rows.split('/')
  for letter, rows in {
    'a': '01110/10001/10001/11111/10001/10001/10001',
    'b': '11110/10001/10001/11110/10001/10001/11110',
    'c': '01111/10000/10000/10000/10000/10000/01111',
    'd': '11110/10001/10001/10001/10001/10001/11110',
    'e': '11111/10000/10000/11110/10000/10000/11111',
    'f': '11111/10000/10000/11110/10000/10000/10000',
    'g': '01111/10000/10000/10011/10001/10001/01111',
    'h': '10001/10001/10001/11111/10001/10001/10001',
    'i': '11111/00100/00100/00100/00100/00100/11111',
    'j': '00111/00010/00010/00010/00010/10010/01100',
    'k': '10001/10010/10100/11000/10100/10010/10001',
    'l': '10000/10000/10000/10000/10000/10000/11111',
    'm': '10001/11011/10101/10101/10001/10001/10001',
    'n': '10001/11001/11001/10101/10011/10011/10001',
    'o': '01110/10001/10001/10001/10001/10001/01110',
    'p': '11110/10001/10001/11110/10000/10000/10000',
    'q': '01110/10001/10001/10001/10101/10010/01101',
    'r': '11110/10001/10001/11110/10100/10010/10001',
    's': '01111/10000/10000/01110/00001/00001/11110',
    't': '11111/00100/00100/00100/00100/00100/00100',
    'u': '10001/10001/10001/10001/10001/10001/01110',
    'v': '10001/10001/10001/10001/10001/01010/00100',
    'w': '10001/10001/10001/10101/10101/11011/10001',
    'x': '10001/10001/01010/00100/01010/10001/10001',
    'y': '10001/10001/01010/00100/00100/00100/00100',
    'z': '11111/00001/00010/00100/01000/10000/11111',
  }.items()
}
_INK = {
  name: shade(color, 0.82) if name in ('yellow', 'orange') else shade(color, 0.9)
  for name, color in COLORS.items()
}
# Width and height of a font pixel. A letter and its gap take a quarter of the image.
CELL = (1 / 24, 1 / 29)


def write(
  canvas: Canvas, text: str, corner: Point, color: Color, scale: float = 1.0
) -> list[float]:
  """Draws a word with its upper left corner at `corner`; returns its tight box."""
  canvas.begin()
  across, down = (side * scale for side in CELL)
  for k, letter in enumerate(text):
    left = corner[0] + 6 * k * across
    for row, bits in enumerate(_GLYPHS[letter]):
      top = corner[1] + row * down
      for run in re.finditer('1+', bits):
        canvas.rectangle(
          (left + run.start() * across, top, left + run.end() * across, top + down), color
        )
  return canvas.box()


def draw(rng: np.random.Generator, size: int, scale: float = 1.0) -> tuple[Canvas, list[dict]]:
  """Draws one scene; returns (canvas, [{'text', 'color', 'box'}] from top to bottom)."""
  count = 1 + int(rng.random() < 0.2)
  texts = [LEXICON[k] for k in rng.choice(len(LEXICON), count, replace=False)]
  inks = [list(COLORS)[int(k)] for k in rng.choice(len(COLORS), count, replace=False)]
  across, down = (side * scale for side in CELL)
  while True:
    tops = sorted(lattice(rng, 7 * down) for _ in texts)
    if count == 1 or tops[1] - tops[0] > 0.3:
      break
  canvas, words = Canvas(size), []
  for text, ink, top in zip(texts, inks, tops):
    corner = (lattice(rng, (6 * len(text) - 1) * across), top)
    box = write(canvas, text, corner, jitter(_INK[ink], rng, 8), scale)
    words.append({'text': text, 'color': ink, 'box': box})
  return canvas, words
