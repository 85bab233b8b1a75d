"""Shows packed rows as the model gets them: the text, the trained part of it, and every view."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sphinx_jax.core.text import one_line, printable
from sphinx_jax.data.record import MARK
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import stop

_TRAINED_COLOR, _TEXT_COLOR, _NOTE_COLOR = '#0a7d3e', '#3a4150', '#8a93a1'
_GAP = 10  # Pixels.
_TEXT_WIDTH = 760  # Pixels.
_LINE_HEIGHT = 18  # Pixels.
_WORD_WIDTH = 100  # Characters. A longer word is broken, because it would not fit into a line.
_LINES = 500  # The rest of a longer text is not drawn.
_HIDDEN = ('<s>', '</s>', '<unk>')  # Special tokens that every example has, or that have no text.

Runs = list[tuple[str, bool]]  # Pieces of text in order, each with whether it is trained on.
Views = Sequence[tuple[str, np.ndarray]]  # (caption, uint8[V,Y,X,3]) for each encoder size.


class Example(NamedTuple):
  """One packed example.

  Attributes:
    row: row of the batch.
    task: name of its task.
    begin: its first position in the row.
    end: the position after its last one.
    slots: its image slots.
    runs: its text. `<image>` is where the tokens of a slot are.
    visual: number of its visual tokens.
    weight: sum of its loss weights.
  """

  row: int
  task: str
  begin: int
  end: int
  slots: tuple[int, ...]
  runs: Runs
  visual: int
  weight: float


def examples(
  batch: Mapping[str, np.ndarray],
  row: int,
  tokenizer: Tokenizer,
  tasks: Sequence[str],
  visual_tokens: int,
  pairs: bool = False,
) -> list[Example]:
  """Returns the examples that are packed into one row of a batch.

  Args:
    batch: a batch (core/batch.py).
    row: index of the row.
    tokenizer: the run's tokenizer.
    tasks: names of the mixture's tasks, by index.
    visual_tokens: visual tokens of one image.
    pairs: whether examples are the chosen and the rejected answers of pairs, in turns.
  """
  segments = batch['segments'][row]
  result = []
  for segment in range(1, segments.max() + 1):
    positions = np.flatnonzero(segments == segment)
    begin, end = int(positions[0]), int(positions[-1]) + 1
    index = batch['visual_index'][row, begin:end]
    visual = index[index >= 0]
    weights = batch['loss_weight'][row, begin:end]
    # The weight at position t belongs to the prediction of token t + 1.
    is_trained = np.concatenate([[0], weights[:-1]]) > 0
    task = tasks[batch['task'][row, begin]]
    answer = (' (chosen)' if segment % 2 else ' (rejected)') if pairs else ''
    result.append(
      Example(
        row=row,
        task=f'{task}{answer}',
        begin=begin,
        end=end,
        slots=tuple(np.unique(visual // max(visual_tokens, 1)).tolist()),
        runs=_runs(batch['tokens'][row, begin:end], is_trained, index, visual_tokens, tokenizer),
        visual=len(visual),
        weight=float(weights.sum()),
      )
    )
  return result


def _runs(
  tokens: np.ndarray,
  is_trained: np.ndarray,
  visual_index: np.ndarray,
  visual_tokens: int,
  tokenizer: Tokenizer,
) -> Runs:
  """Decodes the text of an example, split at images and where training starts or ends.

  Args:
    tokens: int32[S], the tokens of the example.
    is_trained: bool[S].
    visual_index: int32[S], -1 for text.
    visual_tokens: visual tokens of one image.
    tokenizer: the run's tokenizer.
  """
  specials = {i: name for name, i in tokenizer.specials.items() if name not in _HIDDEN}
  slots = np.where(visual_index < 0, -1, visual_index // max(visual_tokens, 1)).tolist()
  names = [specials.get(token) if slot < 0 else MARK for slot, token in zip(slots, tokens.tolist())]
  runs, begins = [], True  # `begins`: no text since an image or a special token.
  for (slot, name, trained), group in itertools.groupby(
    zip(slots, names, is_trained.tolist(), tokens.tolist()), key=lambda position: position[:3]
  ):
    ids = [token for *_, token in group]
    if name is None:  # The tokenizer, not the dialog, puts a space before the first piece.
      text = stop.continuation(tokenizer, ids)
      text = text.removeprefix(' ') if begins else text
    else:
      text = name * (1 if slot >= 0 else len(ids))
    begins = name is not None or (begins and not text)
    if runs and runs[-1][1] == trained:
      runs[-1] = (runs[-1][0] + text, trained)
    else:
      runs.append((text, trained))
  return runs


def to_text(example: Example, color: bool) -> str:
  """Returns an example for a terminal.

  Args:
    example: the example.
    color: print trained text in green. Otherwise it is put between ⟦ and ⟧.
  """
  left, right = ('\x1b[1;32m', '\x1b[0m') if color else ('⟦', '⟧')
  runs = [(printable(part), trained) for part, trained in example.runs]
  text = ''.join(f'{left}{part}{right}' if trained else part for part, trained in runs)
  return f'{_headline(example)}\n{textwrap.indent(text, "    ")}'


def _headline(example: Example) -> str:
  image = 'no image'
  if example.slots:
    places = ', '.join(map(str, example.slots))
    image = f'image in slot {places}, {example.visual} tokens'
  return (
    f'row {example.row}, positions {example.begin}-{example.end - 1}, '
    f'task {one_line(example.task, 60)}, {image}, loss weight {example.weight:.3g}'
  )


def to_image(shown: Sequence[tuple[Example, Views]], table: str) -> Image.Image:
  """Returns examples with their views as one image.

  Args:
    shown: the examples, each with the views that the encoders get.
    table: text at the top.
  """
  path = f'{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono.ttf'
  font = ImageFont.truetype(path, 12)
  bands = [_text_block([(table, False)], 'mixture', font)]
  bands += [_band(example, views, font) for example, views in shown]
  width = max(band.width for band in bands) + 2 * _GAP
  height = sum(band.height + 2 * _GAP for band in bands)
  page = Image.new('RGB', (width, height), 'white')
  draw, top = ImageDraw.Draw(page), 0
  for band in bands:
    page.paste(band, (_GAP, top + _GAP))
    top += band.height + 2 * _GAP
    draw.line((0, top, width, top), fill='#d5d9df')
  return page


def _band(example: Example, views: Views, font: ImageFont.FreeTypeFont) -> Image.Image:
  """Returns the views of an example on the left and its text on the right."""
  sheets = [_contact_sheet(caption, pixels, font) for caption, pixels in views]
  text = _text_block(example.runs, _headline(example), font)
  text_left = max((sheet.width for sheet in sheets), default=0) + 2 * _GAP
  height = max(sum(sheet.height for sheet in sheets), text.height)
  band = Image.new('RGB', (text_left + text.width, height), 'white')
  top = 0
  for sheet in sheets:
    band.paste(sheet, (0, top))
    top += sheet.height
  band.paste(text, (text_left, 0))
  return band


def _contact_sheet(
  caption: str, pixels: np.ndarray, font: ImageFont.FreeTypeFont, edge: int = 112
) -> Image.Image:
  """Returns views side by side, with small gaps between them, and a caption below.

  Args:
    caption: text below.
    pixels: uint8[V,Y,X,3], the views.
    font: font of the caption.
    edge: views are enlarged to about this many pixels.
  """
  count, size = pixels.shape[:2]
  scale = max(1, round(edge / size))
  shown = size * scale  # Edge of an enlarged view.
  sheet = Image.new('RGB', (count * (shown + 4), shown + 22), 'white')
  for i, view in enumerate(pixels):
    enlarged = Image.fromarray(view).resize((shown, shown), Image.Resampling.NEAREST)
    sheet.paste(enlarged, (i * (shown + 4), 0))
  ImageDraw.Draw(sheet).text((0, shown + 3), one_line(caption, 100), fill=_NOTE_COLOR, font=font)
  return sheet


def _text_block(runs: Runs, headline: str, font: ImageFont.FreeTypeFont) -> Image.Image:
  """Returns text in reading order, broken into lines, with the trained parts in green."""
  words = [(0, 0, headline, _NOTE_COLOR)]  # (x, y, text, color)
  x, y = 0, 24
  for word, trained in _words(runs):
    length = 0 if word == '\n' else font.getlength(word)
    if word == '\n' or (x and x + length > _TEXT_WIDTH):
      x, y = 0, y + _LINE_HEIGHT
    if y > _LINES * _LINE_HEIGHT:
      words.append((0, y, '(the rest of the text is not drawn)', _NOTE_COLOR))
      break
    if word != '\n':
      words.append((x, y, word, _TRAINED_COLOR if trained else _TEXT_COLOR))
      x += length
  block = Image.new('RGB', (_TEXT_WIDTH, y + _LINE_HEIGHT), 'white')
  draw = ImageDraw.Draw(block)
  for left, top, text, color in words:
    draw.text((left, top), text, fill=color, font=font)
  return block


def _words(runs: Runs) -> Iterator[tuple[str, bool]]:
  """Yields line breaks, and words with a space after them, each with whether it is trained on."""
  for text, trained in runs:
    for part in printable(text).replace('\n', ' \n ').split(' '):
      if part == '\n':
        yield part, trained
        continue
      for begin in range(0, max(len(part), 1), _WORD_WIDTH):
        piece = part[begin : begin + _WORD_WIDTH]
        yield (piece if begin + _WORD_WIDTH < len(part) else f'{piece} '), trained
