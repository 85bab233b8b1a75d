"""ScienceQA: school science with choices; about half of the questions have a picture, the others are text alone.

root/
  problems.json            id -> {question, choices, answer (index), hint, image ('image.png' or null), split, lecture, ...}
  pid_splits.json          split -> ids
  images/train/1/image.png   val/, test/ in the same way; or root/train/1/image.png; or in the folder that the setting
                           `images` names (relative to root)

Licence: CC BY-NC-SA 4.0.
Homepage: https://scienceqa.github.io
"""

from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.datasets.fields import field, index_of, texts
from sphinx_jax.datasets.files import find, folder, read_json
from sphinx_jax.datasets.qa import Questions, chosen


class ScienceQa(Questions):
  """Questions with 'choices' and 'context', the hint, which is '' where there is none."""

  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test', 'minival', 'minitest')

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task, max_turns  # No two questions share a picture.
    self._folder = folder(root, images, 'images', '.')
    problems = read_json('scienceqa', find('scienceqa', root, 'problems.json'), dict)
    splits = read_json('scienceqa', find('scienceqa', root, 'pid_splits.json'), dict)
    if not isinstance(splits.get(split), list):
      raise errors.make(
        "source 'scienceqa'",
        f"no list '{split}' in pid_splits.json",
        'the official file',
        f'use one of {", ".join(splits)}',
      )
    super().__init__(
      'scienceqa', [(str(number), problems.get(str(number))) for number in splits[split]], 1
    )

  def _read(self, record: tuple[str, Any]) -> tuple[str | None, dict]:
    number, problem = record
    entry = chosen(
      number,
      field(problem, 'question', str),
      texts(problem, 'choices'),
      index_of(problem, 'answer'),
      context=field(problem, 'hint', str, '').strip(),
    )
    image = field(problem, 'image', str, None)
    return f'{field(problem, "split", str)}/{number}/{image}' if image else None, entry

  def _image(self, picture: str | None) -> Path | None:
    return None if picture is None else self._folder / picture
