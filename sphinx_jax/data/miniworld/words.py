"""Scenes of one or two short words in a 5 x 7 pixel font.

The words are lettered in capitals and their text is given in lower case: reading is not about case here.
"""

from __future__ import annotations

import re

import numpy as np

from sphinx_jax.data.miniworld.draw import COLORS, Canvas, jitter, shade

LEXICON = tuple(
  """
sun cup car box key dog cat hen fox owl bee ant map pen bag hat jam egg tea ice sky sea top web zip van
boat fish bird duck frog lion bear wolf milk cake rice salt leaf tree rose moon star rain snow wind fire lamp door
desk book sofa ring drum kite jazz quiz yoga taxi
""".split()
)

# Rows from top to bottom, 5 bits each, leftmost pixel first.
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
  name: shade(color, 0.82) if name in ('yellow', 'orange') else shade(color, 0.9) for name, color in COLORS.items()
}
CELLS = (2.0, 2.0, 2.25, 2.5)  # side of one font pixel, in 1/64 of the picture
MARGIN = 1 / 64


def write(canvas: Canvas, text, corner, cell, color):
  """Letters `text` with its upper left `corner` there; `cell` is the side of a font pixel. Gives the tight box."""
  canvas.begin()
  for k, letter in enumerate(text):
    left = corner[0] + 6 * k * cell
    for row, bits in enumerate(_GLYPHS[letter]):
      top = corner[1] + row * cell
      for run in re.finditer('1+', bits):
        canvas.rectangle((left + run.start() * cell, top, left + run.end() * cell, top + cell), color)
  return canvas.box()


def _snapped(rng, low, high, size):
  """A place on the picture's own pixel grid, so that letters stay crisp."""
  return int(rng.integers(int(np.ceil(low * size)), int(high * size) + 1)) / size


def draw(rng: np.random.Generator, size: int):
  """One scene on a sheet: (Canvas, [{"text", "color", "box"}]), from top to bottom."""
  count = 1 + int(rng.random() < 0.45)
  texts = [LEXICON[k] for k in rng.choice(len(LEXICON), count, replace=False)]
  inks = [list(COLORS)[int(k)] for k in rng.choice(len(COLORS), count, replace=False)]
  canvas, words = Canvas(size), []
  for k, (text, ink) in enumerate(zip(texts, inks)):
    cell = float(rng.choice(CELLS)) / 64
    width, height = (6 * len(text) - 1) * cell, 7 * cell
    x = _snapped(rng, MARGIN, 1 - MARGIN - width, size)
    y = _snapped(rng, k / count + MARGIN, (k + 1) / count - MARGIN - height, size)
    box = write(canvas, text, (x, y), cell, jitter(_INK[ink], rng, 8))
    words.append({'text': text, 'color': ink, 'box': box})
  return canvas, words
