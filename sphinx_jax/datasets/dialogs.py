"""Dialogs: LLaVA's visual instruction data, and ShareGPT.

`Llava` (https://llava-vl.github.io, https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K; CC BY 4.0, written by
GPT-4, so OpenAI's terms apply; the pictures have their datasets' own licences), as LLaVA 1.5 lays it out:

    root/llava_v1_5_mix665k.json        or llava_instruct_150k.json, conversation_58k.json, detail_23k.json, ...
    root/coco/train2017/000000033471.jpg
    root/gqa/images/ ocr_vqa/images/ textvqa/train_images/ vg/VG_100K/ vg/VG_100K_2/

a JSON list of {"id", "image": "coco/train2017/000000033471.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat
is it?"}, {"from": "gpt", "value": "A bus."}, ...]}; items without "image" are text only. The older files name pictures of
COCO train2017 alone ("000000033471.jpg"); they are looked for in coco/train2017 or train2017.

`ShareGpt` (https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered and the like; no licence is stated,
texts are their users' and OpenAI's), text only:

    root/ShareGPT_V3_unfiltered_cleaned_split.json      or another of its names

a JSON list of {"id", "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}.
"""

from pathlib import Path
from typing import Any

from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import files, jsonl
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.fields import unique
from sphinx_jax.datasets.files import folder

_ASKS, _ANSWERS = (
  ('human', 'user'),
  ('gpt', 'chatgpt', 'assistant', 'model', 'bing', 'bard', 'claude'),
)
_TELLS = ('system',)


class _Dialogs:
  """A list of conversations; of items with one id the same one is kept once, and another one gets '#2'."""

  TASKS, SPLITS = ('dialog',), ('train',)
  NAME: str
  FILES: tuple[str, ...]

  def __init__(self, root: Path, split: str, task: str, max_turns: int, file: str = ''):
    del split, task, max_turns  # All turns of a dialog stay together.
    path = files.find(self.NAME, root, *([file] if file else self.FILES))
    self._rows = jsonl.Rows(f'{self.NAME}: {path}', path)
    self._kept, names = _different(self._rows)
    self._names = unique(names)

  def __len__(self) -> int:
    return len(self._kept)

  def _row(self, index: int) -> tuple[str, str, Any]:
    where, value = self._rows[self._kept[index]]
    return self._names[index], where, value


class Llava(_Dialogs):
  """LLaVA's instruction data.

  Args:
    file: the JSON file under root, by default the first of `FILES` that is there.
    images: folder that "image" is relative to, under root; by default root itself, or the one of COCO train2017.
  """

  NAME = 'llava'
  FILES = (
    'llava_v1_5_mix665k.json',
    'llava_instruct_150k.json',
    'llava_instruct_80k.json',
    'complex_reasoning_77k.json',
    'conversation_58k.json',
    'detail_23k.json',
  )

  def __init__(
    self, root: Path, split: str, task: str, max_turns: int, file: str = '', images: str = ''
  ):
    super().__init__(root, split, task, max_turns, file)
    self._root, self._images = (
      root / images,
      folder(root, images, 'coco/train2017', 'train2017', '.'),
    )

  def item(self, index: int) -> Item:
    """Raises BadExample ('not a conversation', 'empty answer', 'missing image')."""
    name, where, value = self._row(index)
    said = jsonl.turns(where, jsonl.conversations(where, value))
    image = value.get('image')
    if image is not None:
      if not isinstance(image, str) or not image:
        raise BadExample('missing image', f'{where}: "image" is {image!r:.80}')
      image = (self._root if '/' in image else self._images) / image
    return Item(name, image, {'turns': [list(turn) for turn in said]})


class ShareGpt(_Dialogs):
  """Dialogs of people with chat models, as they are: HTML that was left in them stays.

  An empty value is as if it had not been said. Turns of one speaker that follow each other are one turn, joined by a line
  break; what the system says stands before the next question. A dialog that begins with an answer keeps it, with no question
  before it; a last question without an answer is left out.

  Args:
    file: the JSON file under root, by default the first of `FILES` that is there.
  """

  NAME = 'sharegpt'
  FILES = (
    'ShareGPT_V3_unfiltered_cleaned_split.json',
    'ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json',
    'ShareGPT_2023.05.04v0_Wasteland_Edition.json',
    'sg_90k_part1.json',
    'sg_90k_part2.json',
    'sharegpt.json',
    'sharegpt.jsonl',
  )

  def item(self, index: int) -> Item:
    """Raises BadExample ('not a conversation', 'unknown speaker', 'empty answer')."""
    name, where, value = self._row(index)
    result: list[list] = []  # [question or None, answer or None]
    for said in jsonl.conversations(where, value):
      speaker, text = said['from'].strip().lower(), str(said['value']).strip()
      if speaker not in _ASKS + _ANSWERS + _TELLS:
        raise BadExample('unknown speaker', f'{where}: {speaker!r:.80}')
      if text:
        _add(result, speaker in _ANSWERS, text)
    if result and result[-1][1] is None:
      result.pop()
    if not result:
      raise BadExample('empty answer', f'{where}: no answers')
    return Item(name, None, {'turns': result})


def _add(turns: list[list], answers: bool, text: str) -> None:
  """Adds what is said next to [[question or None, answer or None], ...]."""
  last = turns[-1] if turns else None
  if answers:
    if last is None:
      turns.append([None, text])
    else:
      last[1] = text if last[1] is None else f'{last[1]}\n{text}'
  elif last is None or last[1] is not None:
    turns.append([text, None])
  else:
    last[0] += f'\n{text}'


def _different(rows: jsonl.Rows) -> tuple[list[int], list[str]]:
  """(numbers of the rows without repetitions of one with the same id, ids of these)."""
  kept, names, of = [], [], {}
  for index in Progress(range(len(rows)), what=f'{rows.path.name}: dialogs'):
    name, value = _name(rows, index)
    if any(rows[other][1] == value for other in of.get(name, ())):
      continue
    of.setdefault(name, []).append(index)
    kept.append(index)
    names.append(name)
  return kept, names


def _name(rows: jsonl.Rows, index: int) -> tuple[str, Any]:
  try:
    value = rows[index][1]
  except BadExample:  # An item still, which says what is wrong when it is read.
    return f'row {index + 1}', None
  name = value.get('id') if isinstance(value, dict) else None
  return (str(name) if isinstance(name, (str, int)) and name != '' else f'row {index + 1}'), value
