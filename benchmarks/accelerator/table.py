"""The sizes that `benchmarks.accelerator` measures, and the rows that it prints."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sphinx_jax.core import text


class Sizes(NamedTuple):
  """What is measured.

  Attributes:
    llms: part -> row of `sphinx.LLMS` of the model that it updates.
    encoders: row of `sphinx.ENCODERS`.
    scale: row of `sphinx.SCALES`, or 'mini'.
    batch: settings of a config: positions and image slots of a row, positions of a chunk of the
      loss.
    rows: batch sizes of an update, best first.
    images: images that an encoder sees at once.
    decoder: row of `sphinx.LLMS` that decodes.
    batches: batch sizes of decoding.
    prompt: tokens of a prompt.
    tokens: tokens of an answer.
    answers: timed answers of one token and of all of them.
    copied: bytes of the array that measures the bandwidth.
    files: images of the data pipeline.
    windows: windows of examples that it is timed for.
    repeats: timed runs of everything else.
    attention: kernel of an update; None: cudnn on a GPU, 'auto' elsewhere.
  """

  llms: Mapping[str, str]
  encoders: str
  scale: str
  batch: Mapping[str, int]
  rows: tuple[int, ...]
  images: int
  decoder: str
  batches: tuple[int, ...]
  prompt: int
  tokens: int
  answers: int
  copied: int
  files: int
  windows: int
  repeats: int
  attention: str | None = None


FULL = Sizes(
  llms={'update_1b': '1b', 'update_7b': '7b'},
  encoders='full',
  scale='224',
  batch={'batch.seq_len': 2048, 'batch.images': 6, 'loss_chunk': 512},
  rows=(8, 4, 2),
  images=64,
  decoder='7b',
  batches=(1, 8, 64),
  prompt=260,
  tokens=97,
  answers=3,
  copied=2**31,
  files=128,
  windows=2,
  repeats=7,
)
TINY = Sizes(
  llms={'update_1b': 'mini', 'update_7b': 'mini'},
  encoders='mini',
  scale='mini',
  batch={'batch.seq_len': 256, 'batch.images': 2, 'loss_chunk': 128},
  rows=(2,),
  images=2,
  decoder='mini',
  batches=(1, 8),
  prompt=20,
  tokens=97,
  answers=3,
  copied=2**27,
  files=16,
  windows=1,
  repeats=3,
)


class Row(NamedTuple):
  """One line of the table.

  Attributes:
    what: what was measured.
    value: a number, or a word.
    unit: of the number.
    aim: the least number that an H100-class GPU should reach at full size, or None.
    note: how it was measured.
  """

  what: str
  value: float | str
  unit: str = ''
  aim: float | None = None
  note: str = ''


def formatted(parts: Mapping[str, Mapping[str, Any]], tiny: bool) -> str:
  """The table of the finished parts.

  Args:
    parts: name -> `rows`, each a dictionary of `Row`, `problem` ('' for none) and `seconds`.
    tiny: whether sizes were tiny; no aim is judged then.
  """
  lines: list[Sequence[str]] = [('part', 'measured', 'value', 'unit', 'aim', 'note')]
  for name, part in parts.items():
    for row in part['rows']:
      value, aim = row['value'], row['aim']
      shown = value if isinstance(value, str) else f'{value:.4g}'
      verdict = '' if aim is None else f'>= {aim:g}'
      if verdict and not tiny:
        verdict += ', reached' if value >= aim else ', missed'
      lines.append((name, row['what'], shown, row['unit'], verdict, row['note']))
    if part['problem']:
      lines.append((name, 'FAILED', '', '', '', part['problem']))
  return text.table(lines, 'llrlll')
