"""VizWiz: questions of blind people about their photos, ten answers each; many are unanswerable.

    root/
      Annotations/train.json            or root/train.json: a list of {image, question, answers
                                        [{answer, answer_confidence}], answerable, answer_type};
                                        the same for val, and for test without answers
      train/VizWiz_train_00000000.jpg   val/, test/; or the directory of the setting `images`

Licence: CC BY 4.0.
Homepage: https://vizwiz.org/tasks-and-datasets/vqa/
"""

from pathlib import Path, PurePosixPath
from typing import Any

from sphinx_jax.datasets.fields import field, id_field, texts_field
from sphinx_jax.datasets.files import image_folder
from sphinx_jax.datasets.qa import Questions, question
from sphinx_jax.tasks.questions import UNANSWERABLE_INSTRUCTION


class VizWiz(Questions):
  """Questions with the most common answer and all 'answers'. Their ids are those of the images.

  They are trained with the instruction of the official evaluation: only training with it teaches
  the model when to refuse.

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'vizwiz'
  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test')

  def _open(self, *, images: str = '') -> None:
    self._folder = image_folder(self.root, images, self.split, f'images/{self.split}')
    file = f'{self.split}.json'
    path = self._find(f'Annotations/{file}', f'annotations/{file}', file)
    self._set_records(self._read_json(path, list))

  def _read(self, record: Any) -> tuple[str, dict[str, Any]]:
    image = id_field(record, 'image')
    return image, question(
      PurePosixPath(image).stem,
      field(record, 'question', str),
      texts_field(record, 'answers'),
      instruction=UNANSWERABLE_INSTRUCTION,
    )

  def _image(self, image: str) -> Path:
    return self._folder / image
