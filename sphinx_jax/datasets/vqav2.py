"""VQAv2 and OKVQA: questions about COCO pictures, ten answers each.

root/                                              or root/vqav2/ (root/okvqa/)
  v2_OpenEnded_mscoco_train2014_questions.json     OKVQA: OpenEnded_mscoco_train2014_questions.json
  v2_mscoco_train2014_annotations.json             OKVQA: mscoco_train2014_annotations.json
  ... val2014 in the same way
  v2_OpenEnded_mscoco_test2015_questions.json      and test-dev2015; their answers are hidden
  train2014/COCO_train2014_000000000009.jpg        val2014/, test2015/: COCO's folders, here, in root/images, root/coco or
                                                   root/../coco, or in the folder that the setting `images` names

Licence: VQAv2's annotations CC BY 4.0, OKVQA's see its homepage; the pictures are under the terms of Flickr.
Homepages: https://visualqa.org/download.html and https://okvqa.allenai.org
"""

import sys
from pathlib import Path
from typing import Any

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import field, name_of, texts
from sphinx_jax.datasets.files import coco_folder, find, listed
from sphinx_jax.datasets.qa import Questions, question


class Vqav2(Questions):
  """Questions with 'answer' (the files' multiple_choice_answer, else the most common) and all 'answers'."""

  TASKS = ('vqa',)
  SPLITS = ('train2014', 'val2014', 'test2015', 'test-dev2015')
  _NAME, _PREFIX = 'vqav2', 'v2_'

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    self._pictures = split.replace('test-dev', 'test')
    self._folder = coco_folder(root, images, self._pictures)
    super().__init__(self._NAME, self._records(root, split), max_turns)

  def _records(self, root: Path, split: str) -> list[tuple[Any, dict[str, Any]]]:
    """(a question, the annotations by question id) as the files have them."""
    asked = self._listed(root, f'OpenEnded_mscoco_{split}_questions.json', 'questions')
    answered: dict[str, Any] = {}
    if not split.startswith('test'):
      for annotation in self._listed(root, f'mscoco_{split}_annotations.json', 'annotations'):
        try:
          answered.setdefault(name_of(annotation, 'question_id'), annotation)
        except BadExample:
          continue  # Its question has no answer then, and is counted.
    return [(record, answered) for record in asked]

  def _listed(self, root: Path, file: str, key: str) -> list:
    path = find(self._NAME, root, self._PREFIX + file, f'{self._NAME}/{self._PREFIX}{file}')
    return listed(self._NAME, path, key, _lean)

  def _read(self, record: tuple[Any, dict[str, Any]]) -> tuple[int, dict]:
    asked, answered = record
    number = name_of(asked, 'question_id')
    annotation = answered.get(number, {})
    return field(asked, 'image_id', int), question(
      number,
      field(asked, 'question', str),
      texts(annotation, 'answers'),
      answer=field(annotation, 'multiple_choice_answer', str, None) or None,
    )

  def _image(self, picture: int) -> Path:
    return self._folder / f'COCO_{self._pictures}_{picture:012d}.jpg'


def _lean(value: dict) -> Any:
  """Of an annotator's answer the text alone: there are 4 million of them, and few different ones."""
  return sys.intern(value['answer']) if isinstance(value.get('answer'), str) else value


class OkVqa(Vqav2):
  """Questions that need knowledge of the world, in VQAv2's form."""

  SPLITS = ('train2014', 'val2014')
  _NAME, _PREFIX = 'okvqa', ''
