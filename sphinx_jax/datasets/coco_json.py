"""The JSON of COCO (images, annotations, categories), in which COCO, LVIS, DocLayNet and RefCOCO's instances come.

What is wrong with one image or annotation is a BadExample of the item that needs it; the others stay usable.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from sphinx_jax.core import boxes, errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import field, number
from sphinx_jax.datasets.files import read_json

# Most of the bytes of these files, and nothing of it is asked for.
_UNUSED = frozenset(
  {'segmentation', 'area', 'license', 'flickr_url', 'date_captured', 'supercategory'}
)
_AMBIGUOUS: dict = {}  # Stands for two images of one id.


class CocoJson:
  """One such file, held without its segmentations.

  Attributes:
    images: image id -> its entry.
    annotations: image id -> its annotations, equal ones once; those whose image id is unreadable stand under None.
    names: category id -> name, in the order of the file.

  Raises:
    SphinxError: no such file, no JSON, or a list is missing.
  """

  def __init__(self, source: str, path: Path):
    with Progress(what=f'{source}: {path.name}', unit='entries') as bar:
      value = {
        'categories': [],
        **read_json(source, path, dict, lambda entry: _lean(entry, bar)),
      }  # Captions have none.
    for name in ('images', 'annotations', 'categories'):
      if not isinstance(value.get(name), list):
        raise errors.make(
          f"source '{source}'",
          f"no list '{name}' in {str(path)!r}",
          'a file in the format of COCO',
          'check that it is the official file',
        )
    self.images: dict[Any, dict] = {}
    for image in value['images']:
      if _key(image, 'id') is not None:
        same = self.images.setdefault(image['id'], image) == image
        self.images[image['id']] = image if same else _AMBIGUOUS
    self.annotations: dict[Any, list] = {}
    for annotation in value['annotations']:
      self.annotations.setdefault(_key(annotation, 'image_id'), []).append(annotation)
    self.annotations = {image_id: _once(rows) for image_id, rows in self.annotations.items()}
    self.names = {
      entry['id']: entry['name']
      for entry in value['categories']
      if _key(entry, 'id') is not None and isinstance(entry.get('name'), str)
    }

  def image(self, image_id: Hashable) -> dict:
    """The entry of an image. Raises BadExample ('unknown image', 'duplicate id')."""
    image = self.images.get(image_id)
    if image is None:
      raise BadExample(
        'unknown image', f'an annotation of image {image_id!r}, which is not in the file'
      )
    if image is _AMBIGUOUS:
      raise BadExample('duplicate id', f'two images have the id {image_id!r}')
    return image

  def about(self, image_id: Hashable) -> dict:
    """{'size'} of the image as tasks read it, or {} where the file says none. Raises BadExample as `image` does."""
    image = self.image(image_id)
    if 'width' not in image or 'height' not in image:
      return {}
    return {
      'size': tuple(
        number(image[side], f'{side} of image {image_id}') for side in ('width', 'height')
      )
    }

  def objects(self, image_id: Hashable) -> list[dict]:
    """What is annotated in an image, as `object` tells it. Raises BadExample ('malformed record')."""
    return [self.object(row) for row in self.annotations.get(image_id, ())]

  def object(self, annotation: dict) -> dict:
    """{'id', 'name', 'box', 'crowd'} of an annotation. Raises BadExample ('malformed record')."""
    return {
      'id': str(field(annotation, 'id', (int, str), '')),
      'name': self.name(annotation),
      'box': box(annotation),
      'crowd': bool(annotation.get('iscrowd')),
    }

  def name(self, annotation: dict) -> str:
    """The category's name. Raises BadExample ('malformed record')."""
    key = field(annotation, 'category_id', (int, str))
    if key not in self.names:
      raise BadExample('malformed record', f'category {key!r:.80}, which is not in the file')
    return self.names[key]


def box(annotation: dict) -> list[float]:
  """[x1, y1, x2, y2] of an annotation's 'bbox' [x, y, width, height]. Raises BadExample ('malformed record')."""
  given = field(annotation, 'bbox', list)
  if len(given) != 4:
    raise BadExample('malformed record', f'box {given!r:.80}, expected [x, y, width, height]')
  return list(boxes.corners([number(value, 'box') for value in given]))


def _lean(entry: dict, bar: Progress) -> dict:
  bar.update()
  return {key: value for key, value in entry.items() if key not in _UNUSED}


def _key(annotation: Any, name: str) -> Any:
  key = annotation.get(name) if isinstance(annotation, dict) else None
  return key if isinstance(key, int | str) else None


def _once(rows: list) -> list:
  """The rows without repetitions; rows of one id that differ all stay."""
  if len({_key(row, 'id') for row in rows}) == len(rows):
    return rows
  return list({repr(row): row for row in rows}.values())
