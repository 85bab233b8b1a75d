"""ScienceQA: school science with choices. About half of the questions have an image.

    root/
      problems.json              id -> {question, choices, answer (index), hint,
                                 image ('image.png' or null), split, lecture, ...}
      pid_splits.json            split -> ids
      images/train/1/image.png   the same for val/ and test/; or root/train/1/image.png; or the
                                 directory of the setting `images`

Licence: CC BY-NC-SA 4.0.
Homepage: https://scienceqa.github.io
"""

from pathlib import Path
from typing import Any

from sphinx_jax.datasets.fields import as_id, field, index_field, texts_field
from sphinx_jax.datasets.files import image_folder
from sphinx_jax.datasets.qa import Questions, choice_question


class ScienceQa(Questions):
  """Questions with 'choices' and 'context', the hint or ''. No two questions share an image.

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'scienceqa'
  TASKS = ('vqa',)
  SPLITS = ('train', 'val', 'test', 'minival', 'minitest')

  def _open(self, *, images: str = '') -> None:
    self._folder = image_folder(self.root, images, 'images', '.')
    problems = self._read_json(self._find('problems.json'), dict)
    splits = self._read_json(self._find('pid_splits.json'), dict)
    ids = splits.get(self.split)
    if not isinstance(ids, list):
      raise self._error(
        f"no list '{self.split}' in pid_splits.json",
        'the published file',
        f'use one of {", ".join(splits)}',
      )
    # One question an item: the questions without an image are not about one image.
    self._set_records(
      [(key, problems.get(key)) for key in (str(as_id(value)) for value in ids)], max_turns=1
    )

  def _read(self, record: tuple[str, Any]) -> tuple[str | None, dict[str, Any]]:
    question_id, problem = record
    entry = choice_question(
      question_id,
      field(problem, 'question', str),
      texts_field(problem, 'choices'),
      index_field(problem, 'answer'),
      context=field(problem, 'hint', str, '').strip(),
    )
    image = field(problem, 'image', str, None)
    if not image:
      return None, entry
    return f'{field(problem, "split", str)}/{question_id}/{image}', entry

  def _image(self, image: str | None) -> Path | None:
    return None if image is None else self._folder / image
