"""TextVQA and TextCaps: questions about, and captions of, photographs with text. They share images.

    root/
      TextVQA_0.5.1_train.json           {data: [{image_id, question, question_id, answers (ten),
                                         ...}]}; _val, _test (hidden)
      TextCaps_0.1_train.json            {data: [{image_id, caption_id, caption_str, reference_strs,
                                         ...}]}; _val, _test (hidden)
      train_images/0054c91397f2fe05.jpg  of train and val
      test_images/                       of test; or the directory of the setting `images`

Licence: annotations CC BY 4.0; the images are from Open Images (CC BY 2.0).
Homepages: https://textvqa.org/dataset and https://textvqa.org/textcaps/dataset
"""

from pathlib import Path
from typing import Any

from sphinx_jax.datasets.fields import field, id_field, texts_field
from sphinx_jax.datasets.files import image_folder
from sphinx_jax.datasets.qa import Questions, question


class TextVqa(Questions):
  """Questions with the most common answer and all 'answers'.

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'textvqa'
  TASKS: tuple[str, ...] = ('ocr', 'vqa')
  SPLITS = ('train', 'val', 'test')
  FILE = 'TextVQA_0.5.1_{}.json'

  def _open(self, *, images: str = '') -> None:
    folder = 'test_images' if self.split == 'test' else 'train_images'
    self._folder = image_folder(self.root, images, folder, 'train_val_images')
    path = self._find(self.FILE.format(self.split))
    self._set_records(self._read_json_list(path, 'data'))

  def _read(self, record: Any) -> tuple[str, dict[str, Any]]:
    image_id = id_field(record, 'image_id')
    return image_id, question(
      id_field(record, 'question_id'),
      field(record, 'question', str),
      texts_field(record, 'answers'),
    )

  def _image(self, image: str) -> Path:
    return self._folder / f'{image}.jpg'


class TextCaps(TextVqa):
  """One caption per item, with all five of its image as 'captions'. Hidden captions are ''.

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'textcaps'
  TASKS = ('caption',)
  FILE = 'TextCaps_0.1_{}.json'

  def _set_records(self, records: list[Any], max_turns: int | None = None) -> None:
    del max_turns  # A caption has one turn.
    super()._set_records(records, 1)

  def _read(self, record: Any) -> tuple[str, dict[str, Any]]:
    image_id, caption = id_field(record, 'image_id'), field(record, 'caption_str', str, '')
    caption_id = id_field(record, 'caption_id') if 'caption_id' in record else image_id
    return image_id, {
      'id': caption_id,
      'caption': caption,
      'captions': texts_field(record, 'reference_strs') or [caption],
    }

  def _annotation(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
    (entry,) = entries
    return {'caption': entry['caption'], 'captions': entry['captions']}
