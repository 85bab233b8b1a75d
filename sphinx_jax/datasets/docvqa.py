"""DocVQA: questions about scanned documents, some answers each that count as equal.

root/                                or, as the newer download has it,  root/
  train/train_v1.0.json                                                  spdocvqa_qas/train_v1.0_withQT.json
  train/documents/xnbl0037_1.png                                         spdocvqa_images/xnbl0037_1.png
  val/, test/ in the same way (the answers of test are hidden)

The JSON may also lie in root, with or without _withQT, and the pictures in root/documents, or in the folder that the setting
`images` names (relative to root).
Licence: terms of the Robust Reading Competition; documents of the UCSF Industry Documents Library.
Homepage: https://www.docvqa.org/datasets/docvqa
"""

from pathlib import Path, PurePosixPath
from typing import Any

from sphinx_jax.datasets.fields import field, name_of, texts
from sphinx_jax.datasets.files import find, folder, listed
from sphinx_jax.datasets.qa import Questions, question


class DocVqa(Questions):
  """Questions with the most common answer and all 'answers'."""

  TASKS = ('ocr', 'vqa')
  SPLITS = ('train', 'val', 'test')

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    self._folder = folder(root, images, f'{split}/documents', 'documents', 'spdocvqa_images')
    names = [
      f'{place}{split}_v1.0{end}.json'
      for place in (f'{split}/', 'spdocvqa_qas/', '')
      for end in ('_withQT', '')
    ]
    super().__init__('docvqa', listed('docvqa', find('docvqa', root, *names), 'data'), max_turns)

  def _read(self, record: Any) -> tuple[str, dict]:
    return PurePosixPath(name_of(record, 'image')).name, question(
      name_of(record, 'questionId'), field(record, 'question', str), texts(record, 'answers')
    )

  def _image(self, picture: str) -> Path:
    return self._folder / picture
