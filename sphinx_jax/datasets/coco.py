"""COCO: captions, instances and person keypoints, of 2017 and of 2014.

    root/
      annotations/captions_train2017.json instances_train2017.json
                  person_keypoints_train2017.json ...
      train2017/000000000009.jpg ...                (or images/train2017/)
      train2014/COCO_train2014_000000000009.jpg ... (or images/train2014/)

Only the file and the directory of the requested split and task are needed.
Licence: annotations CC BY 4.0; images as licensed by their owners on Flickr.
Homepage: https://cocodataset.org
"""

from typing import Any

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.coco_json import CocoJson, annotation_id, box, is_crowd
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import as_id, field, number, unique_ids

_FILES = {
  'caption': 'captions',
  'detection': 'instances',
  'counting': 'instances',
  'pose': 'person_keypoints',
}


class Coco(Family):
  """An item for each caption, for each image with objects, or for each image with keypoints.

  Crowds of objects are kept and marked 'crowd'. Crowds of people, and people without an annotated
  keypoint, are left out.
  """

  NAME = 'coco'
  TASKS = ('caption', 'detection', 'counting', 'pose')
  SPLITS = ('train2017', 'val2017', 'train2014', 'val2014')

  def _open(self) -> None:
    file = f'annotations/{_FILES[self.task]}_{self.split}.json'
    self._file = CocoJson(self._who(), self._find(file))
    self._images = self._find(self.split, f'images/{self.split}')
    # (item id, image id, annotation of a caption)
    self._items: list[tuple[str, Any, Any]]
    if self.task == 'caption':
      self._items = _caption_items(self._file)
    else:
      self._items = _image_items(self._file, self.task)

  def __len__(self) -> int:
    return len(self._items)

  def item(self, index: int) -> Item:
    """Raises BadExample ('malformed record', 'unknown image', 'duplicate id')."""
    item_id, image_id, caption = self._items[index]
    annotation = self._file.size_annotation(image_id)
    rows = self._file.annotations[image_id]
    if self.task == 'caption':
      annotation['caption'] = _caption_text(caption)
      annotation['captions'] = [_caption_text(row) for row in rows if _is_caption(row)]
    elif self.task == 'pose':
      annotation['people'] = [_person(row) for row in rows if _has_pose(row)]
      annotation['every'] = True  # The image may also have the people that are left out.
    else:
      annotation['objects'] = self._file.objects(image_id)
      annotation['classes'] = list(dict.fromkeys(self._file.names.values()))
    file_name = field(self._file.image(image_id), 'file_name', str)
    return Item(item_id, (self._images / file_name,), annotation)


def _is_caption(row: Any) -> bool:
  return (
    isinstance(row, dict) and isinstance(row.get('caption'), str) and bool(row['caption'].strip())
  )


def _caption_text(row: Any) -> str:
  return ' '.join(field(row, 'caption', str).split())


def _caption_items(file: CocoJson) -> list[tuple[str, Any, Any]]:
  rows = [(image_id, row) for image_id, rows in file.annotations.items() for row in rows]
  ids = unique_ids(
    str(as_id(row.get('id'))) if isinstance(row, dict) else 'unreadable' for _, row in rows
  )
  return [(item_id, image_id, row) for item_id, (image_id, row) in zip(ids, rows)]


def _image_items(file: CocoJson, task: str) -> list[tuple[str, Any, Any]]:
  """The images with something to ask about. A malformed annotation counts: reading it raises."""
  is_asked = _has_pose if task == 'pose' else _is_single
  return [
    (str(image_id), image_id, None)
    for image_id, rows in file.annotations.items()
    if any(is_asked(row) for row in rows)
  ]


def _is_single(row: Any) -> bool:
  return not is_crowd(row)


def _has_pose(row: Any) -> bool:
  if not isinstance(row, dict):
    return True
  return not is_crowd(row) and as_id(row.get('num_keypoints')) != 0


def _person(row: Any) -> dict[str, Any]:
  points = [number(value, 'keypoint') for value in field(row, 'keypoints', list)]
  if len(points) != 51 or not {0, 1, 2}.issuperset(points[2::3]):
    raise BadExample(
      'malformed record', f'keypoints {points}, expected 17 x [x, y, v] with v of 0, 1 or 2'
    )
  return {
    'id': annotation_id(row),
    'box': box(row),
    'keypoints': [[points[i], points[i + 1], int(points[i + 2])] for i in range(0, 51, 3)],
  }
