"""GQA: compositional questions made from scene graphs of Visual Genome's images, one answer each.

    root/                              or root/questions1.2/ or root/questions/
      train_balanced_questions.json    an object of question id -> question; the same for the splits
      val_all_questions.json           val, testdev, test, challenge and submission, _balanced_ and
                                       _all_. The answers of the last three are hidden.
      train_all_questions/train_all_questions_0.json ... _9.json
    root/images/2370799.jpg            n161313.jpg; or the directory of the setting `images`

A question takes about 0.7 kB of memory. train_balanced takes 0.7 GB and opens in half a minute.
train_all has 14 million questions.
Licence: annotations CC BY 4.0, images as Visual Genome.
Homepage: https://cs.stanford.edu/people/dorarad/gqa/download.html
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core.progress import Progress
from sphinx_jax.datasets.fields import field, id_field, texts_field
from sphinx_jax.datasets.files import image_folder
from sphinx_jax.datasets.qa import Questions, question


class Gqa(Questions):
  """Questions with one answer.

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'gqa'
  TASKS = ('vqa',)
  SPLITS = (
    'train_balanced',
    'val_balanced',
    'testdev_balanced',
    'test_balanced',
    'challenge_balanced',
    'train_all',
    'val_all',
    'testdev_all',
    'test_all',
    'challenge_all',
    'submission_all',
  )

  def _open(self, *, images: str = '') -> None:
    self._folder = image_folder(self.root, images, 'images')
    path = self._find(
      *(
        f'{parent}{self.split}_questions{ending}'
        for parent in ('', 'questions1.2/', 'questions/')
        for ending in ('', '.json')
      )
    )
    paths = sorted(path.glob('*.json')) if path.is_dir() else [path]
    self._set_records(self._read_files(paths))

  def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """(id, question) of all files."""
    for path in Progress(paths, what='gqa: files', unit='files'):
      yield from self._read_json(path, dict, _drop_unused).items()

  def _read(self, record: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    question_id, asked = record
    image_id = id_field(asked, 'imageId')
    return image_id, question(
      question_id, field(asked, 'question', str), texts_field(asked, 'answer')
    )

  def _image(self, image: str) -> Path:
    return self._folder / f'{image}.jpg'


def _drop_unused(value: dict[str, Any]) -> dict[str, Any]:
  """Drops the programs and objects of a question, which are most of its bytes."""
  if 'imageId' not in value:
    return value
  return {key: value.get(key) for key in ('imageId', 'question', 'answer')}
