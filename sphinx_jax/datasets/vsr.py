"""VSR: statements on where things are to each other in COCO pictures, true or false.

root/                              or root/splits/, root/data/splits/
  random/train.jsonl               {image, image_link, caption, label (0, 1), relation, ...} a line; dev and test too
  zeroshot/train.jsonl             the same, with other concepts in each split
root/images/000000050403.jpg       or root/trainval2017/, root/data/images/, ..., or in the folder that the setting `images`
                                   names (relative to root), or in COCO's train2017/ and val2017/ as image_link says

Licence: Apache 2.0; the pictures are under the terms of Flickr.
Homepage: https://github.com/cambridgeltl/visual-spatial-reasoning
"""

import json
from pathlib import Path, PurePosixPath

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import field, index_of, name_of
from sphinx_jax.datasets.files import coco_folder, find, folder
from sphinx_jax.datasets.qa import Questions, question

# The official evaluation's wording, to which it adds nothing.
QUESTION = 'Is the following statement "{}" true or false?'
_ANSWERS = ('false', 'true')


class Vsr(Questions):
  """One question a statement, named as its line; the answer is 'true' or 'false'."""

  TASKS = ('vqa',)
  SPLITS = (
    'random_train',
    'random_dev',
    'random_test',
    'zeroshot_train',
    'zeroshot_dev',
    'zeroshot_test',
  )

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    own = folder(root, images, 'images', 'trainval2017', 'data/images', 'data/trainval2017')
    coco = {name: coco_folder(root, '', name) for name in ('train2017', 'val2017')}
    # Without a folder of its own it is COCO's, whose two folders the links tell apart.
    self._folders = {} if images or own.is_dir() else coco
    self._own = own
    name = split.replace('_', '/') + '.jsonl'
    path = find('vsr', root, name, f'splits/{name}', f'data/splits/{name}')
    lines = enumerate(path.read_bytes().splitlines())
    super().__init__(
      'vsr', [(f'{split}-{n}', line) for n, line in lines if line.strip()], max_turns
    )

  def _read(self, record: tuple[str, bytes]) -> tuple[tuple[str, str], dict]:
    number, line = record
    try:
      said = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise BadExample('not json', f'{number}: {error}') from error
    caption, label = field(said, 'caption', str), index_of(said, 'label')
    if label not in (0, 1, None) or not caption.strip():
      raise BadExample('malformed record', f'{number}: label {label!r} of {caption!r:.80}')
    split = PurePosixPath(field(said, 'image_link', str, '')).parent.name
    return (split, name_of(said, 'image')), question(
      number,
      QUESTION.format(caption.strip()),
      [] if label is None else [_ANSWERS[label]],
      instruction='{}',
    )

  def _image(self, picture: tuple[str, str]) -> Path:
    split, name = picture
    return self._folders.get(split, self._own) / name
