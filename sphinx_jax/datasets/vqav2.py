"""VQAv2 and OK-VQA: questions about COCO images, ten answers each.

    root/                                              or root/vqav2/ (root/okvqa/)
      v2_OpenEnded_mscoco_train2014_questions.json     without v2_ for OK-VQA
      v2_mscoco_train2014_annotations.json             without v2_ for OK-VQA
      ... the same for val2014
      v2_OpenEnded_mscoco_test2015_questions.json      and test-dev2015; the answers are hidden
      train2014/COCO_train2014_000000000009.jpg        val2014/, test2015/

COCO's image directories may be in root, root/images, root/coco or root/../coco, or in the directory
that the setting `images` names.
Licence: annotations of VQAv2 CC BY 4.0, of OK-VQA see the homepage; the images are under the
terms of Flickr.
Homepages: https://visualqa.org/download.html and https://okvqa.allenai.org
"""

import sys
from pathlib import Path
from typing import Any

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import field, id_field, number_field, texts_field
from sphinx_jax.datasets.files import coco_image_folder
from sphinx_jax.datasets.qa import Questions, question


class Vqav2(Questions):
  """Questions with the answer to train and all 'answers'.

  The answer to train is the files' multiple_choice_answer or, if there is none, the most common
  one.

  Settings:
    images: directory of COCO's image directories, relative to root.
  """

  NAME = 'vqav2'
  TASKS = ('vqa',)
  SPLITS = ('train2014', 'val2014', 'test2015', 'test-dev2015')
  PREFIX = 'v2_'

  def _open(self, *, images: str = '') -> None:
    self._image_split = self.split.replace('test-dev', 'test')
    self._folder = coco_image_folder(self.root, images, self._image_split)
    questions = self._read_file(f'OpenEnded_mscoco_{self.split}_questions.json', 'questions')
    annotations: dict[str, Any] = {}  # By question id; None: two different ones.
    if not self.split.startswith('test'):
      for annotation in self._read_file(f'mscoco_{self.split}_annotations.json', 'annotations'):
        try:
          question_id = id_field(annotation, 'question_id')
        except BadExample:
          continue  # Its question has no answer then, and is counted.
        first = annotations.setdefault(question_id, annotation)
        if first is not annotation and first != annotation:
          annotations[question_id] = None
    self._set_records([(record, annotations) for record in questions])

  def _read_file(self, file: str, key: str) -> list[Any]:
    path = self._find(self.PREFIX + file, f'{self.NAME}/{self.PREFIX}{file}')
    return self._read_json_list(path, key, _keep_answer_text)

  def _read(self, record: tuple[Any, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    asked, annotations = record
    question_id = id_field(asked, 'question_id')
    annotation = annotations.get(question_id, {})
    if annotation is None:
      raise BadExample('duplicate id', f'two annotations of question {question_id}')
    image_id = number_field(asked, 'image_id')
    entry = question(
      question_id,
      field(asked, 'question', str),
      texts_field(annotation, 'answers'),
      answer=field(annotation, 'multiple_choice_answer', str, None) or None,
    )
    return image_id, entry

  def _image(self, image: int) -> Path:
    return self._folder / f'COCO_{self._image_split}_{image:012d}.jpg'


def _keep_answer_text(value: dict[str, Any]) -> Any:
  """Replaces an annotator's answer by its text: there are 4 million, and few different ones."""
  return sys.intern(value['answer']) if isinstance(value.get('answer'), str) else value


class OkVqa(Vqav2):
  """Questions that need outside knowledge, in VQAv2's format."""

  NAME = 'okvqa'
  SPLITS = ('train2014', 'val2014')
  PREFIX = ''
