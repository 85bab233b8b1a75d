"""Dialogs: LLaVA's visual instruction data, and ShareGPT.

`Llava`, in the tree of LLaVA 1.5:

    root/llava_v1_5_mix665k.json        or llava_instruct_150k.json, conversation_58k.json,
                                        detail_23k.json, ...
    root/coco/train2017/000000033471.jpg
    root/gqa/images/ ocr_vqa/images/ textvqa/train_images/ vg/VG_100K/ vg/VG_100K_2/

The file is a JSON list of {"id", "image": "coco/train2017/000000033471.jpg", "conversations":
[{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A bus."}, ...]}.
Items without "image" are text only, and `"image": [path, ...]` are several. The older files name
images of COCO train2017 without a directory ("000000033471.jpg"), which are read from
coco/train2017 or train2017.
Licence: CC BY 4.0; written by GPT-4, so OpenAI's terms apply; the images have their datasets' own
licences.
Homepages: https://llava-vl.github.io and
https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K

`ShareGpt`, text only:

    root/ShareGPT_V3_unfiltered_cleaned_split.json      or another of its names

The file is a JSON list of {"id", "conversations": [{"from": "human", "value": ...}, {"from": "gpt",
"value": ...}, ...]}.
Licence: none is stated; texts belong to their users and to OpenAI.
Homepage: https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered and similar ones
"""

from pathlib import Path
from typing import Any

from sphinx_jax.core.progress import Progress
from sphinx_jax.data import video
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import conversations, jsonl
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import as_id, unique_ids
from sphinx_jax.datasets.files import image_folder


class _Dialogs(Family):
  """A list of conversations. All turns of a dialog stay together, whatever max_turns is.

  Equal conversations with one id are kept once. A different one with the same id gets '#2'.
  """

  TASKS = ('dialog',)
  SPLITS = ('train',)
  FILES: tuple[str, ...]

  def _open(self, *, file: str = '') -> None:
    path = self._find(*([file] if file else self.FILES))
    self._items = jsonl.JsonItems(f'{self.NAME}: {path}', path)
    self._kept, ids = _drop_repeated(self._items)
    self._ids = unique_ids(ids)

  def __len__(self) -> int:
    return len(self._kept)

  def _read_item(self, index: int) -> tuple[str, str, Any]:
    """Returns (id, location for messages, value). Raises BadExample ('not json')."""
    location, value = self._items[self._kept[index]]
    return self._ids[index], location, value


class Llava(_Dialogs):
  """LLaVA's instruction data.

  Settings:
    file: the JSON file under root, by default the first of `FILES` that exists.
    images: directory under root that "image" is relative to. By default root, and COCO train2017
      for an image without a directory.
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

  def _open(self, *, file: str = '', images: str = '') -> None:
    super()._open(file=file)
    self._images = self.root / images
    self._coco_images = image_folder(self.root, images, 'coco/train2017', 'train2017', '.')

  def item(self, index: int) -> Item:
    """Raises BadExample ('not a conversation', 'empty answer', 'missing image')."""
    item_id, location, value = self._read_item(index)
    conversation = conversations.read(location, value)
    turns = conversations.read_turns(location, conversation.messages)
    images = [image for media in conversation.media for image in self._read_media(media)]
    annotation = {'turns': [list(turn) for turn in turns], 'marks': conversation.marks}
    return Item(item_id, tuple(images), annotation)

  def _read_media(self, media: conversations.Media) -> list[Path | bytes]:
    path = (self._images if '/' in media.path else self._coco_images) / media.path
    return video.frames(path, media.frames) if media.frames else [path]


class ShareGpt(_Dialogs):
  """Dialogs of people with chat models. HTML in them is kept.

  Empty values are dropped. Consecutive turns of one speaker are one turn, joined by a line break. A
  system message is put before the next question. A dialog that begins with an answer keeps it, with
  the question None. A last question without an answer is dropped.

  Settings:
    file: the JSON file under root, by default the first of `FILES` that exists.
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
    item_id, location, value = self._read_item(index)
    conversation = conversations.read(location, value)
    if conversation.media:
      raise BadExample('unsupported image', f"{location}: source 'llava' reads images")
    turns: list[list[str | None]] = []  # [question, answer]
    for role, text in conversation.messages:
      if text.strip():
        _append(turns, role == conversations.MODEL, text.strip())
    if turns and turns[-1][1] is None:
      turns.pop()
    if not turns:
      raise BadExample('empty answer', f'{location}: no answers')
    return Item(item_id, (), {'turns': turns})


def _append(turns: list[list[str | None]], is_answer: bool, text: str) -> None:
  """Appends a text to [[question, answer], ...]. Either of the last turn may be None."""
  last = turns[-1] if turns else None
  if is_answer:
    if last is None:
      turns.append([None, text])
    else:
      last[1] = text if last[1] is None else f'{last[1]}\n{text}'
  elif last is None or last[1] is not None:
    turns.append([text, None])
  else:
    last[0] += f'\n{text}'


def _drop_repeated(items: jsonl.JsonItems) -> tuple[list[int], list[str]]:
  """Returns indices without those of equal items with the same id, and the ids of the rest."""
  kept: list[int] = []
  ids: list[str] = []
  indices_of_id: dict[str, list[int]] = {}
  for index in Progress(range(len(items)), what=f'{items.path.name}: dialogs'):
    item_id, value = _read_id(items, index)
    same_id = indices_of_id.setdefault(item_id, [])
    if any(items[other][1] == value for other in same_id):
      continue
    same_id.append(index)
    kept.append(index)
    ids.append(item_id)
  return kept, ids


def _read_id(items: jsonl.JsonItems, index: int) -> tuple[str, Any]:
  """Returns (id, value). A line that is not JSON is kept, and its item raises."""
  default = f'row {index + 1}'
  try:
    value = items[index][1]
  except BadExample:
    return default, None
  item_id = value.get('id') if isinstance(value, dict) else None
  item_id = as_id(item_id)
  return default if item_id is None else str(item_id), value
