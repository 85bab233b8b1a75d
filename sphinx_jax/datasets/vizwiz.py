"""VizWiz: questions of blind people about pictures they took, ten answers each; many cannot be answered.

root/
  Annotations/train.json            or root/train.json: a list of {image, question, answers [{answer, answer_confidence}],
                                    answerable, answer_type}; val in the same way, test without answers
  train/VizWiz_train_00000000.jpg   val/, test/; or the folder that the setting `images` names (relative to root)

Licence: CC BY 4.0.
Homepage: https://vizwiz.org/tasks-and-datasets/vqa/
"""

from pathlib import Path, PurePosixPath
from typing import Any

from sphinx_jax.datasets.fields import field, name_of, texts
from sphinx_jax.datasets.files import find, folder, read_json
from sphinx_jax.datasets.qa import Questions, question
from sphinx_jax.tasks.task import SHORT_ANSWER

# The official evaluation's: whoever has not seen it in training does not know when to refuse.
INSTRUCTION = SHORT_ANSWER.replace(
  '{}', "{} When the provided information is insufficient, respond with 'Unanswerable'."
)


class VizWiz(Questions):
  """Questions, named as their picture, with the most common answer and all 'answers'."""

  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test')

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    self._folder = folder(root, images, split, f'images/{split}')
    found = find(
      'vizwiz', root, f'Annotations/{split}.json', f'annotations/{split}.json', f'{split}.json'
    )
    super().__init__('vizwiz', read_json('vizwiz', found, list), max_turns)

  def _read(self, record: Any) -> tuple[str, dict]:
    picture = name_of(record, 'image')
    return picture, question(
      PurePosixPath(picture).stem,
      field(record, 'question', str),
      texts(record, 'answers'),
      instruction=INSTRUCTION,
    )

  def _image(self, picture: str) -> Path:
    return self._folder / picture
