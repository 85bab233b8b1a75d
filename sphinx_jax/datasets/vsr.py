"""VSR: statements about the spatial relation of objects in COCO images, true or false.

    root/                              or root/splits/, root/data/splits/
      random/train.jsonl               {image, image_link, caption, label (0, 1), relation, ...} per
                                       line; the same for dev and test
      zeroshot/train.jsonl             the same, with other concepts in each split
    root/images/000000050403.jpg       or root/trainval2017/, root/data/images/, ...; or the
                                       directory of the setting `images`; or COCO's train2017/ and
                                       val2017/, as in image_link

Licence: Apache 2.0; the images are under the terms of Flickr.
Homepage: https://github.com/cambridgeltl/visual-spatial-reasoning
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from sphinx_jax.core.files import json_lines, read_bytes
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import field, id_field, index_field
from sphinx_jax.datasets.files import coco_image_folder, image_folder
from sphinx_jax.datasets.qa import Questions, question

# The whole prompt of the official evaluation, which adds no instruction.
QUESTION = 'Is the following statement "{}" true or false?'
_ANSWERS = ('false', 'true')


class Vsr(Questions):
  """One question per statement, answered 'true' or 'false'. Ids have the number of the line.

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'vsr'
  TASKS = ('vqa',)
  SPLITS = (
    'random_train',
    'random_dev',
    'random_test',
    'zeroshot_train',
    'zeroshot_dev',
    'zeroshot_test',
  )

  def _open(self, *, images: str = '') -> None:
    self._folder = image_folder(
      self.root, images, 'images', 'trainval2017', 'data/images', 'data/trainval2017'
    )
    # COCO's two directories, if the dataset has no directory of its own.
    self._coco_folders: dict[str, Path] = {}
    if not images and not self._folder.is_dir():
      self._coco_folders = {
        name: coco_image_folder(self.root, '', name) for name in ('train2017', 'val2017')
      }
    file = self.split.replace('_', '/') + '.jsonl'
    path = self._find(file, f'splits/{file}', f'data/splits/{file}')
    lines = json_lines(read_bytes(path))
    self._set_records([(f'{self.split}-{number - 1}', line) for number, line in lines])

  def _read(self, record: tuple[str, bytes]) -> tuple[tuple[str, str], dict[str, Any]]:
    question_id, line = record
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise BadExample('not json', f'{question_id}: {error}') from error
    caption, label = field(row, 'caption', str), index_field(row, 'label')
    if label not in (0, 1, None) or not caption.strip():
      raise BadExample('malformed record', f'{question_id}: label {label!r} of {caption!r:.80}')
    coco_split = PurePosixPath(field(row, 'image_link', str, '')).parent.name
    image = id_field(row, 'image')
    return (coco_split, image), question(
      question_id,
      QUESTION.format(caption.strip()),
      [] if label is None else [_ANSWERS[label]],
      instruction='{}',
    )

  def _image(self, image: tuple[str, str]) -> Path:
    coco_split, name = image
    return self._coco_folders.get(coco_split, self._folder) / name
