"""A-OKVQA: questions that need knowledge of the world, with four choices and ten direct answers.

root/                          or root/aokvqa/
  aokvqa_v1p0_train.json       a list of objects; val and test in the same way, the answers of test are hidden
  train2017/000000299207.jpg   val2017/, test2017/: COCO's folders, here, in root/images, root/coco or root/../coco, or in
                               the folder that the setting `images` names

Settings: form 'direct' (the most common direct answer) or 'choice' (the letter of the right choice). Questions that the
evaluation of direct answers leaves out (difficult_direct_answer) are kept for training.
Licence: MIT for the repository, no other is told for the annotations; the pictures are under the terms of Flickr.
Homepage: https://github.com/allenai/aokvqa
"""

from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.datasets.fields import field, index_of, name_of, texts
from sphinx_jax.datasets.files import coco_folder, find, read_json
from sphinx_jax.datasets.qa import Questions, chosen, question

FORMS = ('direct', 'choice')


class AOkVqa(Questions):
  """'rationales' of a question stay with it."""

  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test')

  def __init__(
    self, root: Path, split: str, task: str, max_turns: int, form: str = 'direct', images: str = ''
  ):
    del task
    if form not in FORMS:
      raise errors.unknown("form of source 'aokvqa'", form, FORMS)
    self._form, self._folder = form, coco_folder(root, images, f'{split}2017')
    file = f'aokvqa_v1p0_{split}.json'
    super().__init__(
      'aokvqa', read_json('aokvqa', find('aokvqa', root, file, f'aokvqa/{file}'), list), max_turns
    )

  def _read(self, record: Any) -> tuple[int, dict]:
    number, text = name_of(record, 'question_id'), field(record, 'question', str)
    rationales = texts(record, 'rationales') or None
    if self._form == 'direct':
      entry = question(number, text, texts(record, 'direct_answers'), rationales=rationales)
    else:
      entry = chosen(
        number,
        text,
        texts(record, 'choices'),
        index_of(record, 'correct_choice_idx'),
        rationales=rationales,
      )
    return field(record, 'image_id', int), entry

  def _image(self, picture: int) -> Path:
    return self._folder / f'{picture:012d}.jpg'
