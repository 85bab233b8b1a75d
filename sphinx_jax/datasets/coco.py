"""COCO: captions, instances and person keypoints, of 2017 and of 2014.

    root/
      annotations/captions_train2017.json instances_train2017.json person_keypoints_train2017.json ...
      train2017/000000000009.jpg ...                (or images/train2017/)
      train2014/COCO_train2014_000000000009.jpg ... (or images/train2014/)

Only the file and the folder of the split and task asked for are needed. Annotations CC BY 4.0; the pictures have the
licences of their owners on Flickr. https://cocodataset.org
"""

from pathlib import Path

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.coco_json import CocoJson, box
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.fields import field, number, unique
from sphinx_jax.datasets.files import find

_FILES = {
  'caption': 'captions',
  'detection': 'instances',
  'counting': 'instances',
  'pose': 'person_keypoints',
}


class Coco:
  """An item for each caption, or for each image with objects or with people whose keypoints are annotated.

  Objects that are crowds carry 'crowd'; people that are crowds, or have no keypoint annotated, are left out.
  """

  TASKS = ('caption', 'detection', 'counting', 'pose')
  SPLITS = ('train2017', 'val2017', 'train2014', 'val2014')

  def __init__(self, root: Path, split: str, task: str, max_turns: int = 1):
    del max_turns  # Of the people of an image the task asks about as many as it may.
    self._file = CocoJson('coco', find('coco', root, f'annotations/{_FILES[task]}_{split}.json'))
    self._pictures = find('coco', root, split, f'images/{split}')
    self._task = task
    self._rows = _captions(self._file) if task == 'caption' else _images(self._file, task)

  def __len__(self) -> int:
    return len(self._rows)

  def item(self, index: int) -> Item:
    name, image_id, row = self._rows[index]
    annotation = self._file.about(image_id)
    if self._task == 'caption':
      others = [other for other in self._file.annotations[image_id] if _is_caption(other)]
      annotation |= {'caption': _text(row), 'captions': [_text(other) for other in others]}
    elif self._task == 'pose':
      people = [_person(row) for row in self._file.annotations[image_id] if _has_pose(row)]
      annotation |= {'people': people, 'every': True}  # Those left out are in the picture, too.
    else:
      annotation |= {
        'objects': self._file.objects(image_id),
        'classes': list(self._file.names.values()),
      }
    return Item(
      name, self._pictures / field(self._file.image(image_id), 'file_name', str), annotation
    )


def _is_caption(annotation: dict) -> bool:
  return (
    isinstance(annotation, dict)
    and isinstance(annotation.get('caption'), str)
    and bool(annotation['caption'].strip())
  )


def _text(annotation: dict) -> str:
  return ' '.join(field(annotation, 'caption', str).split())


def _captions(file: CocoJson) -> list[tuple]:
  rows = [(image_id, row) for image_id, rows in file.annotations.items() for row in rows]
  names = unique(str(row.get('id')) if isinstance(row, dict) else 'unreadable' for _, row in rows)
  return [(name, *row) for name, row in zip(names, rows)]


def _images(file: CocoJson, task: str) -> list[tuple]:
  """Images with something to ask about; what is malformed counts as that, so that its item can say so."""
  asked = (
    _has_pose if task == 'pose' else lambda row: not (isinstance(row, dict) and row.get('iscrowd'))
  )
  return [
    (str(image_id), image_id, None)
    for image_id, rows in file.annotations.items()
    if any(map(asked, rows))
  ]


def _has_pose(annotation: dict) -> bool:
  return (
    not isinstance(annotation, dict)
    or not annotation.get('iscrowd')
    and annotation.get('num_keypoints') != 0
  )


def _person(annotation: dict) -> dict:
  points = [number(value, 'keypoint') for value in field(annotation, 'keypoints', list)]
  if len(points) != 51 or not {0, 1, 2}.issuperset(points[2::3]):
    raise BadExample(
      'malformed record', f'keypoints {points}, expected 17 x [x, y, v] with v of 0, 1 or 2'
    )
  return {
    'id': str(field(annotation, 'id', (int, str), '')),
    'box': box(annotation),
    'keypoints': [[points[i], points[i + 1], int(points[i + 2])] for i in range(0, 51, 3)],
  }
