"""Shows packed rows as the model gets them: which text, which of it is trained on, and the pixels of every view."""

import textwrap
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sphinx_jax.generate import stop

_TRAINED, _GIVEN, _NOTE = '#0a7d3e', '#3a4150', '#8a93a1'
_GAP, _TEXT_WIDTH = 10, 760


class Example(NamedTuple):
  """One packed example.

  Attributes:
    row, task, begin, end: where it lies in its row, and its task's name.
    slot: its image slot, or None.
    runs: [(text, trained or not)], in order; the image's tokens are left out.
    visual: number of image tokens.
    weight: sum of its loss weights.
  """

  row: int
  task: str
  begin: int
  end: int
  slot: int | None
  runs: list
  visual: int
  weight: float


def examples(batch, row, tokenizer, tasks, visual_tokens) -> list[Example]:
  """The examples packed into one row of a batch (core/batch.py)."""
  segments, index = batch['segments'][row], batch['visual_index'][row]
  found = []
  for segment in range(1, segments.max() + 1):
    places = np.flatnonzero(segments == segment)
    begin, end = int(places[0]), int(places[-1]) + 1
    visual = index[begin:end][index[begin:end] >= 0]
    weights = batch['loss_weight'][row, begin:end]
    trained = (
      np.concatenate([[0], weights[:-1]]) > 0
    )  # the weight at t is that of predicting what stands at t + 1
    runs = _runs(batch['tokens'][row, begin:end], trained, index[begin:end] < 0, tokenizer)
    slot = int(visual[0]) // visual_tokens if len(visual) else None
    found.append(
      Example(
        row,
        tasks[batch['task'][row, begin]],
        begin,
        end,
        slot,
        runs,
        len(visual),
        float(weights.sum()),
      )
    )
  return found


def _runs(tokens, trained, is_text, tokenizer):
  runs = []
  for token, label in zip(tokens[is_text], trained[is_text]):
    if not runs or runs[-1][1] != label:
      runs.append(([], bool(label)))
    runs[-1][0].append(int(token))
  texts = [stop.continuation(tokenizer, ids) for ids, _ in runs]
  texts[:1] = [
    text.lstrip(' ') for text in texts[:1]
  ]  # the first piece's space is the tokenizer's, not the dialog's
  return [(text, label) for text, (_, label) in zip(texts, runs)]


def to_text(example, colour) -> str:
  """An example for a terminal: trained text is green where there is colour, else it stands between ⟦ and ⟧."""
  left, right = ('\x1b[1;32m', '\x1b[0m') if colour else ('⟦', '⟧')
  text = ''.join(f'{left}{part}{right}' if trained else part for part, trained in example.runs)
  return f'{_headline(example)}\n{textwrap.indent(text, "    ")}'


def _headline(example):
  image = f'image in slot {example.slot}, {example.visual} tokens' if example.visual else 'no image'
  return (
    f'row {example.row}, positions {example.begin}-{example.end - 1}, task {example.task}, {image}, '
    f'loss weight {example.weight:.3g}'
  )


def picture(shown, table) -> Image.Image:
  """All that was shown as one picture.

  Args:
    shown: [(Example, [(caption, uint8[V, Y, X, 3] views), ...]), ...]: the views that each encoder size sees.
    table: text on top.
  """
  font = ImageFont.truetype(f'{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono.ttf', 12)
  bands = [_text_block([(table, False)], 'what is mixed', font)] + [
    _band(example, views, font) for example, views in shown
  ]
  width = max(band.width for band in bands) + 2 * _GAP
  page = Image.new('RGB', (width, sum(band.height + 2 * _GAP for band in bands)), 'white')
  pen, top = ImageDraw.Draw(page), 0
  for band in bands:
    page.paste(band, (_GAP, top + _GAP))
    top += band.height + 2 * _GAP
    pen.line((0, top, width, top), fill='#d5d9df')
  return page


def _band(example, views, font):
  """Views on the left, text on the right."""
  pictures = [_contact_sheet(caption, pixels, font) for caption, pixels in views]
  text = _text_block(example.runs, _headline(example), font)
  left = max((sheet.width for sheet in pictures), default=0)
  band = Image.new(
    'RGB',
    (left + 2 * _GAP + text.width, max(sum(sheet.height for sheet in pictures), text.height)),
    'white',
  )
  top = 0
  for sheet in pictures:
    band.paste(sheet, (0, top))
    top += sheet.height
  band.paste(text, (left + 2 * _GAP, 0))
  return band


def _contact_sheet(caption, pixels, font, edge=112):
  """Views side by side, enlarged to about `edge` pixels, with small gaps so that one sees where each ends."""
  count, size = pixels.shape[:2]
  scale = max(1, round(edge / size))
  sheet = Image.new('RGB', (count * (size * scale + 4), size * scale + 22), 'white')
  for i, view in enumerate(pixels):
    sheet.paste(
      Image.fromarray(view).resize((size * scale,) * 2, Image.Resampling.NEAREST),
      (i * (size * scale + 4), 0),
    )
  ImageDraw.Draw(sheet).text((0, size * scale + 3), caption, fill=_NOTE, font=font)
  return sheet


def _text_block(runs, headline, font):
  """Text in reading order, broken into lines, trained parts in green."""
  lines, x, y, line = [(0, 0, headline, _NOTE)], 0, 24, 18
  for text, trained in runs:
    for part in text.replace('\n', ' \n ').split(' '):
      if part == '\n':
        x, y = 0, y + line
        continue
      word = f'{part} '
      length = font.getlength(word)
      if x and x + length > _TEXT_WIDTH:
        x, y = 0, y + line
      lines.append((x, y, word, _TRAINED if trained else _GIVEN))
      x += length
  block = Image.new('RGB', (_TEXT_WIDTH, y + line), 'white')
  pen = ImageDraw.Draw(block)
  for x, y, text, colour in lines:
    pen.text((x, y), text, fill=colour, font=font)
  return block
