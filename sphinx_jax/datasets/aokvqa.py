"""A-OKVQA: questions that need knowledge of the world, with four choices and ten direct answers.

    root/                          or root/aokvqa/
      aokvqa_v1p0_train.json       a list of objects; the same for val and test (answers hidden)
      train2017/000000299207.jpg   val2017/, test2017/

COCO's image directories may be in root, root/images, root/coco or root/../coco, or in the directory
that the setting `images` names. Questions that the evaluation of direct answers leaves out
(difficult_direct_answer) are kept for training.
Licence: MIT for the repository, none is stated for the annotations; the images are under the
terms of Flickr.
Homepage: https://github.com/allenai/aokvqa
"""

from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.datasets.fields import field, id_field, index_field, number_field, texts_field
from sphinx_jax.datasets.files import coco_image_folder
from sphinx_jax.datasets.qa import Questions, choice_question, question

FORMS = ('direct', 'choice')


class AOkVqa(Questions):
  """Questions with their 'rationales'.

  Settings:
    form: 'direct' trains the most common direct answer, 'choice' the letter of the right choice.
    images: directory of COCO's image directories, relative to root.
  """

  NAME = 'aokvqa'
  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test')

  def _open(self, *, form: str = 'direct', images: str = '') -> None:
    if form not in FORMS:
      raise errors.unknown(f'form of {self._who()}', form, FORMS)
    self._form = form
    self._folder = coco_image_folder(self.root, images, f'{self.split}2017')
    file = f'aokvqa_v1p0_{self.split}.json'
    self._set_records(self._read_json(self._find(file, f'aokvqa/{file}'), list))

  def _read(self, record: Any) -> tuple[int, dict[str, Any]]:
    question_id, text = id_field(record, 'question_id'), field(record, 'question', str)
    rationales = texts_field(record, 'rationales') or None
    if self._form == 'direct':
      answers = texts_field(record, 'direct_answers')
      entry = question(question_id, text, answers, rationales=rationales)
    else:
      choices = texts_field(record, 'choices')
      index = index_field(record, 'correct_choice_idx')
      entry = choice_question(question_id, text, choices, index, rationales=rationales)
    return number_field(record, 'image_id'), entry

  def _image(self, image: int) -> Path:
    return self._folder / f'{image:012d}.jpg'
