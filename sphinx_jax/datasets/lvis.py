"""LVIS v1: boxes of over 1,200 classes on the images of COCO 2017.

    root/
      lvis_v1_train.json lvis_v1_val.json   (or annotations/)
      train2017/000000391895.jpg ...        (or images/train2017/)
      val2017/...                           (the val split has images of both)

The setting `images` names another directory with train2017 and val2017.
Licence: annotations CC BY 4.0, images as COCO.
Homepage: https://www.lvisdataset.org
"""

import re
from pathlib import Path
from typing import Any

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import files
from sphinx_jax.datasets.coco_json import CocoJson
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import field


class Lvis(Family):
  """An item for each image with objects.

  'absent' are the classes known not to be in the image. 'partial' are classes of which some objects
  have no box. Nothing is known about the other classes without an object.
  """

  NAME = 'lvis'
  TASKS = ('detection', 'counting')
  SPLITS = ('train', 'val')

  def _open(self, *, images: str = '') -> None:
    name = f'lvis_v1_{self.split}.json'
    self._file = CocoJson(self._who(), self._find(name, f'annotations/{name}'))
    self._file.names = {
      category_id: plain_name(name) for category_id, name in self._file.names.items()
    }
    folders = ('train2017', 'images/train2017', 'val2017', 'images/val2017')
    self._image_root = files.find(self._who(), Path(self.root, images), *folders).parent
    self._image_ids = list(self._file.annotations)

  def __len__(self) -> int:
    return len(self._image_ids)

  def item(self, index: int) -> Item:
    """Raises BadExample ('malformed record', 'unknown image', 'duplicate id')."""
    image_id = self._image_ids[index]
    image = self._file.image(image_id)
    objects = self._file.objects(image_id)
    present = {thing['name'] for thing in objects}
    absent = self._category_names(image, 'neg_category_ids')
    annotation = {
      'objects': objects,
      'classes': list(dict.fromkeys(self._file.names.values())),
      'absent': [name for name in absent if name not in present],
      'partial': self._category_names(image, 'not_exhaustive_category_ids'),
    }
    return Item(
      str(image_id),
      (self._image_root / _image_path(image),),
      self._file.size_annotation(image_id) | annotation,
    )

  def _category_names(self, image: dict[str, Any], key: str) -> list[str]:
    category_ids = field(image, key, list, [])
    names = [self._file.category_name({'category_id': number}) for number in category_ids]
    return list(dict.fromkeys(names))


def plain_name(name: str) -> str:
  """Returns a class name without its sense, which no answer should have to spell.

  'bow_(weapon)' becomes 'bow'.
  """
  return re.sub(r'\s*\([^)]*\)', '', name.replace('_', ' ')).strip()


def _image_path(image: dict[str, Any]) -> str:
  """'train2017/000000391895.jpg', which only the URL contains."""
  url = field(image, 'coco_url', str)
  if url.count('/') < 2:
    raise BadExample('malformed record', f'the URL {url!r:.80} of an image')
  return '/'.join(url.split('/')[-2:])
