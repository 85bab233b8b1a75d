"""IconQA: questions about abstract diagrams, with choices or a blank to fill in.

root/iconqa/                          or root/iconqa_data/iconqa/, or root itself
  train/choose_txt/<id>/data.json     {question, choices, answer (index), ...}
  train/choose_txt/<id>/image.png
  train/fill_in_blank/<id>/           the same without choices; answer is a text
  train/choose_img/<id>/              choices are pictures, choice_0.png, ...
  val/, test/ in the same way

choose_img is left out: its choices are pictures, and an example has one. (Its share is over half of the questions.)
Licence: CC BY-NC-SA 4.0.
Homepage: https://iconqa.github.io
"""

import json
import os
from pathlib import Path

from sphinx_jax.core.progress import log
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import family as base
from sphinx_jax.datasets.fields import field, index_of, texts
from sphinx_jax.datasets.files import find
from sphinx_jax.datasets.qa import chosen, question


class IconQa:
  """A family (base.py) whose questions lie in a folder each, and are read when they are asked for."""

  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test')

  def __init__(self, root: Path, split: str, task: str, max_turns: int):
    del task, max_turns  # No two questions share a picture.
    self._root = find('iconqa', root, f'iconqa/{split}', f'iconqa_data/iconqa/{split}', split)
    names = {
      kind: _folders(self._root / kind) for kind in ('choose_txt', 'fill_in_blank', 'choose_img')
    }
    if skipped := len(names.pop('choose_img')):
      log.info(
        'iconqa %s: %d questions are left out, as their choices are pictures', split, skipped
      )
    self._questions = [(kind, name) for kind, found in names.items() for name in found]

  def __len__(self) -> int:
    return len(self._questions)

  def item(self, index: int) -> base.Item:
    """Raises BadExample ('not json', 'malformed record', 'empty question')."""
    kind, name = self._questions[index]
    path = self._root / kind / name
    try:
      data = json.loads((path / 'data.json').read_bytes())
    except (OSError, ValueError, RecursionError) as error:
      raise BadExample('not json', f'{path / "data.json"}: {error}') from error
    text = field(data, 'question', str)
    if kind == 'choose_txt':
      entry = chosen(name, text, texts(data, 'choices'), index_of(data, 'answer'))
    else:
      entry = question(name, text, texts(data, 'answer'))
    return base.Item(f'{kind}-{name}', path / 'image.png', {'questions': [entry]})


def _folders(path: Path) -> list[str]:
  names = os.listdir(path) if path.is_dir() else []
  return sorted(
    (name for name in names if not name.startswith('.')), key=lambda name: (len(name), name)
  )
