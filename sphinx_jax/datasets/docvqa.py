"""DocVQA: questions about scanned documents, each with a few equivalent answers.

    root/                                the older download, or the newer one:  root/
      train/train_v1.0.json                 spdocvqa_qas/train_v1.0_withQT.json
      train/documents/xnbl0037_1.png        spdocvqa_images/xnbl0037_1.png
      the same for val/ and test/ (the answers of test are hidden)

The JSON may also be in root, with or without _withQT, and the images in root/documents or in the
directory of the setting `images`.
Licence: terms of the Robust Reading Competition; documents of the UCSF Industry Documents Library.
Homepage: https://www.docvqa.org/datasets/docvqa
"""

from pathlib import Path, PurePosixPath
from typing import Any

from sphinx_jax.datasets.fields import field, id_field, texts_field
from sphinx_jax.datasets.files import image_folder
from sphinx_jax.datasets.qa import Questions, question


class DocVqa(Questions):
  """Questions with the most common answer and all 'answers'.

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'docvqa'
  TASKS = ('ocr', 'vqa')
  SPLITS = ('train', 'val', 'test')

  def _open(self, *, images: str = '') -> None:
    self._folder = image_folder(
      self.root, images, f'{self.split}/documents', 'documents', 'spdocvqa_images'
    )
    path = self._find(
      *(
        f'{parent}{self.split}_v1.0{ending}.json'
        for parent in (f'{self.split}/', 'spdocvqa_qas/', '')
        for ending in ('_withQT', '')
      )
    )
    self._set_records(self._read_json_list(path, 'data'))

  def _read(self, record: Any) -> tuple[str, dict[str, Any]]:
    image = PurePosixPath(id_field(record, 'image')).name
    return image, question(
      id_field(record, 'questionId'),
      field(record, 'question', str),
      texts_field(record, 'answers'),
    )

  def _image(self, image: str) -> Path:
    return self._folder / image
