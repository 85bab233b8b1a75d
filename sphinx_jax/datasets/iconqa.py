"""IconQA: questions about abstract diagrams, with choices or a blank to fill in.

    root/iconqa/                          or root/iconqa_data/iconqa/, or root itself
      train/choose_txt/<id>/data.json     {question, choices, answer (index), ...}
      train/choose_txt/<id>/image.png
      train/fill_in_blank/<id>/           the same without choices; answer is a text
      train/choose_img/<id>/              the choices are images, choice_0.png, ...
      the same for val/ and test/

choose_img, over half of the questions, is left out: its choices are images, and an example has one
image.
Licence: CC BY-NC-SA 4.0.
Homepage: https://iconqa.github.io
"""

import json
import os
from pathlib import Path

from sphinx_jax.core.files import read_bytes
from sphinx_jax.core.progress import log
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import field, index_field, texts_field
from sphinx_jax.datasets.qa import choice_question, question


class IconQa(Family):
  """Questions in a directory each, read when their item is. No two questions share an image."""

  NAME = 'iconqa'
  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test')

  def _open(self) -> None:
    parents = ('iconqa/', 'iconqa_data/iconqa/', '')
    self._split_root = self._find(*(parent + self.split for parent in parents))
    self._questions = [
      (kind, name)
      for kind in ('choose_txt', 'fill_in_blank')
      for name in _list_folders(self._split_root / kind)
    ]
    skipped = len(_list_folders(self._split_root / 'choose_img'))
    if skipped:
      log.info(
        'iconqa %s: %d questions are left out because their choices are images',
        self.split,
        skipped,
      )

  def __len__(self) -> int:
    return len(self._questions)

  def item(self, index: int) -> Item:
    """Raises BadExample ('not json', 'malformed record', 'empty question')."""
    kind, name = self._questions[index]
    folder = self._split_root / kind / name
    try:
      data = json.loads(read_bytes(folder / 'data.json'))
    except (OSError, ValueError, RecursionError) as error:
      raise BadExample('not json', f'{folder / "data.json"}: {error}') from error
    text = field(data, 'question', str)
    if kind == 'choose_txt':
      entry = choice_question(name, text, texts_field(data, 'choices'), index_field(data, 'answer'))
    else:
      entry = question(name, text, texts_field(data, 'answer'))
    return Item(f'{kind}-{name}', (folder / 'image.png',), {'questions': [entry]})


def _list_folders(path: Path) -> list[str]:
  """Names in a directory, in the order of the numbers that they are."""
  names = os.listdir(path) if path.is_dir() else []
  visible = [name for name in names if not name.startswith('.')]
  return sorted(visible, key=lambda name: (len(name), name))
