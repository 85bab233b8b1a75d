"""GQA: compositional questions made from the scene graphs of Visual Genome's pictures, one answer each.

root/                              or root/questions1.2/ or root/questions/
  train_balanced_questions.json    an object of question id -> question; val_, testdev_, test_, challenge_ and submission_,
  val_all_questions.json           _balanced_ and _all_, in the same way; test, challenge and submission are hidden
  train_all_questions/train_all_questions_0.json ... _9.json
root/images/2370799.jpg            n161313.jpg; or in the folder that the setting `images` names (relative to root)

About 0.7 kB of memory a question: 0.7 GB for train_balanced, which opens in half a minute; train_all has 14 million.
Licence: annotations CC BY 4.0, pictures as Visual Genome.
Homepage: https://cs.stanford.edu/people/dorarad/gqa/download.html
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core.progress import Progress
from sphinx_jax.datasets.fields import field, name_of, texts
from sphinx_jax.datasets.files import find, folder, read_json
from sphinx_jax.datasets.qa import Questions, question


class Gqa(Questions):
  """Questions with one answer."""

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

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    self._folder = folder(root, images, 'images')
    names = [
      f'{place}{split}_questions{end}'
      for place in ('', 'questions1.2/', 'questions/')
      for end in ('', '.json')
    ]
    found = find('gqa', root, *names)
    super().__init__(
      'gqa', _records(sorted(found.glob('*.json')) if found.is_dir() else [found]), max_turns
    )

  def _read(self, record: tuple[str, Any]) -> tuple[str, dict]:
    number, asked = record
    return name_of(asked, 'imageId'), question(
      number, field(asked, 'question', str), texts(asked, 'answer')
    )

  def _image(self, picture: str) -> Path:
    return self._folder / f'{picture}.jpg'


def _records(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
  """(id, question) of file after file, without the programs and objects that are most of their bytes."""
  for path in Progress(paths, what='gqa: files', unit='files'):
    yield from read_json('gqa', path, dict, _lean).items()


def _lean(value: dict) -> dict:
  return (
    {key: value.get(key) for key in ('imageId', 'question', 'answer')}
    if 'imageId' in value
    else value
  )
