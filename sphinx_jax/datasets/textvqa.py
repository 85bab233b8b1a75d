"""TextVQA and TextCaps: questions about, and captions of, photographs with text in them; the pictures are the same.

root/
  TextVQA_0.5.1_train.json         {data: [{image_id, question, question_id, answers (ten), ...}]}; _val, _test (hidden)
  TextCaps_0.1_train.json          {data: [{image_id, caption_id, caption_str, reference_strs, ...}]}; _val, _test (hidden)
  train_images/0054c91397f2fe05.jpg  of train and val
  test_images/                     of test; or the folder that the setting `images` names (relative to root)

Licence: annotations CC BY 4.0; the pictures are from Open Images (CC BY 2.0).
Homepages: https://textvqa.org/dataset and https://textvqa.org/textcaps/dataset
"""

from pathlib import Path
from typing import Any

from sphinx_jax.datasets.fields import field, name_of, texts
from sphinx_jax.datasets.files import find, folder, listed
from sphinx_jax.datasets.qa import Questions, question


class TextVqa(Questions):
  """Questions with the most common answer and all 'answers'."""

  TASKS: tuple[str, ...] = ('ocr', 'vqa')
  SPLITS = ('train', 'val', 'test')
  _NAME, _FILE = 'textvqa', 'TextVQA_0.5.1_{}.json'

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    self._folder = folder(
      root, images, 'test_images' if split == 'test' else 'train_images', 'train_val_images'
    )
    super().__init__(
      self._NAME,
      listed(self._NAME, find(self._NAME, root, self._FILE.format(split)), 'data'),
      max_turns,
    )

  def _read(self, record: Any) -> tuple[str, dict]:
    return name_of(record, 'image_id'), question(
      name_of(record, 'question_id'), field(record, 'question', str), texts(record, 'answers')
    )

  def _image(self, picture: str) -> Path:
    return self._folder / f'{picture}.jpg'


class TextCaps(TextVqa):
  """One caption an item, beside it the five of its picture as 'captions'; '' for the hidden ones."""

  TASKS = ('caption',)
  _NAME, _FILE = 'textcaps', 'TextCaps_0.1_{}.json'

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del max_turns
    super().__init__(root, split, task, 1, images)

  def _read(self, record: Any) -> tuple[str, dict]:
    picture, caption = name_of(record, 'image_id'), field(record, 'caption_str', str, '')
    number = name_of(record, 'caption_id') if 'caption_id' in record else picture
    return picture, {
      'id': number,
      'caption': caption,
      'captions': texts(record, 'reference_strs') or [caption],
    }

  def _annotation(self, entries: list[dict]) -> dict:
    return {'caption': entries[0]['caption'], 'captions': entries[0]['captions']}
