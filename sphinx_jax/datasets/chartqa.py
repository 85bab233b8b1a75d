"""ChartQA: questions about charts, written by people and made from captions.

root/                           or root/ChartQA Dataset/
  train/train_human.json        a list of {imgname, query, label}
  train/train_augmented.json    made by a model
  train/png/41699051005347.png  or in the folder that the setting `images` names (relative to root)
  val/, test/ in the same way

Split 'train' is both files, 'train_human' and 'train_augmented' one of them.
Licence: GPL 3.0.
Homepage: https://github.com/vis-nlp/ChartQA
"""

from pathlib import Path
from typing import Any

from sphinx_jax.datasets.fields import field, name_of, texts
from sphinx_jax.datasets.files import find, folder, read_json
from sphinx_jax.datasets.qa import Questions, question

_PARTS = ('human', 'augmented')


class ChartQa(Questions):
  """Questions with one answer, named human-0, human-1, ... as they stand in their file."""

  TASKS = ('ocr', 'vqa')
  SPLITS = (
    'train',
    'val',
    'test',
    *(f'{split}_{part}' for split in ('train', 'val', 'test') for part in _PARTS),
  )

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    split, _, part = split.partition('_')
    files = {
      part: find(
        'chartqa',
        root,
        f'{split}/{split}_{part}.json',
        f'ChartQA Dataset/{split}/{split}_{part}.json',
      )
      for part in ([part] if part else _PARTS)
    }
    self._folder = folder(root, images, f'{split}/png', f'ChartQA Dataset/{split}/png')
    records = [
      (f'{part}-{number}', record)
      for part, path in files.items()
      for number, record in enumerate(read_json('chartqa', path, list))
    ]
    super().__init__('chartqa', records, max_turns)

  def _read(self, record: tuple[str, Any]) -> tuple[str, dict]:
    number, asked = record
    return name_of(asked, 'imgname'), question(
      number, field(asked, 'query', str), texts(asked, 'label')
    )

  def _image(self, picture: str) -> Path:
    return self._folder / picture
