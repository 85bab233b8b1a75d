"""LVIS v1: boxes of over 1,200 classes on the pictures of COCO 2017.

    root/
      lvis_v1_train.json lvis_v1_val.json   (or annotations/)
      train2017/000000391895.jpg ...        (or images/train2017/)
      val2017/...                           (its val split has pictures of both)

`images=` names another folder that holds train2017 and val2017. Annotations CC BY 4.0, pictures as COCO's.
https://www.lvisdataset.org
"""

import re
from pathlib import Path

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.coco_json import CocoJson
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.fields import field
from sphinx_jax.datasets.files import find


class Lvis:
  """An item for each image with objects. 'absent' are the classes known not to be there, 'partial' those of which some
  objects have no box; about all others that have no object nothing is known."""

  TASKS = ('detection', 'counting')
  SPLITS = ('train', 'val')

  def __init__(self, root: Path, split: str, task: str, max_turns: int = 1, images: str = ''):
    del task, max_turns  # Both tasks read the same lists, and one item an image.
    self._file = CocoJson(
      'lvis', find('lvis', root, f'lvis_v1_{split}.json', f'annotations/lvis_v1_{split}.json')
    )
    self._file.names = {number: plain(name) for number, name in self._file.names.items()}
    self._pictures = find(
      'lvis', Path(root, images), 'train2017', 'images/train2017', 'val2017', 'images/val2017'
    ).parent
    self._images = list(self._file.annotations)

  def __len__(self) -> int:
    return len(self._images)

  def item(self, index: int) -> Item:
    image_id = self._images[index]
    image = self._file.image(image_id)
    objects = self._file.objects(image_id)
    present = {thing['name'] for thing in objects}
    lists = {
      'objects': objects,
      'classes': list(dict.fromkeys(self._file.names.values())),
      'absent': [name for name in self._named(image, 'neg_category_ids') if name not in present],
      'partial': self._named(image, 'not_exhaustive_category_ids'),
    }
    return Item(str(image_id), self._pictures / _place(image), self._file.about(image_id) | lists)

  def _named(self, image: dict, key: str) -> list[str]:
    return list(
      dict.fromkeys(
        self._file.name({'category_id': number}) for number in field(image, key, list, [])
      )
    )


def plain(name: str) -> str:
  """'bow_(weapon)' -> 'bow': the word without its sense, which no answer should have to spell."""
  return re.sub(r'\s*\([^)]*\)', '', name.replace('_', ' ')).strip()


def _place(image: dict) -> str:
  """'train2017/000000391895.jpg', which only the address on the web tells."""
  url = field(image, 'coco_url', str)
  if url.count('/') < 2:
    raise BadExample('malformed record', f'the address {url!r:.80} of an image')
  return '/'.join(url.split('/')[-2:])
