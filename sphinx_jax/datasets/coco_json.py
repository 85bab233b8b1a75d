"""The JSON format of COCO, also used by LVIS, DocLayNet and RefCOCO.

A malformed image or annotation is a BadExample of the items that need it. The others stay usable.
"""

from collections import Counter
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

from sphinx_jax.core import boxes, errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import as_id, as_text, field, number
from sphinx_jax.datasets.files import read_json

# Most of the bytes of these files. Training needs none of it.
_UNUSED = frozenset(
  {'segmentation', 'area', 'license', 'flickr_url', 'date_captured', 'supercategory'}
)
_AMBIGUOUS: dict[str, Any] = {}  # Stands for two different images with one id.


class CocoJson:
  """One file in COCO's format, held without its segmentations.

  Args:
    who: the reader, for messages: "source 'coco'".
    path: the file.
    keep: keys of entries to keep of those that are dropped otherwise ('area').
    strict: raise SphinxError for an entry without an id, and for a repeated image or category.
      Benchmarks need this: a score over fewer images would not be comparable.

  Attributes:
    images: image id -> entry, in the order of the file.
    annotations: image id -> annotations, equal ones once. Annotations whose image id is unreadable
      have the key None.
    names: category id -> name, in the order of the file, without an id that has several names.

  Raises:
    SphinxError: the file is missing or not JSON, or lacks one of the lists.
  """

  def __init__(
    self, who: str, path: Path, keep: Collection[str] = (), strict: bool = False
  ) -> None:
    unused = _UNUSED.difference(keep)

    def drop_unused(entry: dict[str, Any]) -> dict[str, Any]:
      progress.update()
      return {key: value for key, value in entry.items() if key not in unused}

    with Progress(what=f'{who}: {path.name}', unit='entries') as progress:
      value = read_json(who, path, dict, drop_unused)
    value = {'categories': []} | value  # Files of captions have none.
    for name in ('images', 'annotations', 'categories'):
      if not isinstance(value.get(name), list):
        raise errors.make(
          who,
          f"no list '{name}' in {str(path)!r}",
          "a file in COCO's format",
          'check that it is the published file',
        )
    if strict:
      _check_ids(who, path, value)
    self.images: dict[Any, dict[str, Any]] = {}
    for image in value['images']:
      image_id = _key(image, 'id')
      if image_id is not None:
        is_same = self.images.setdefault(image_id, image) == image
        self.images[image_id] = image if is_same else _AMBIGUOUS
    annotations: dict[Any, list[Any]] = {}
    for annotation in value['annotations']:
      annotations.setdefault(_key(annotation, 'image_id'), []).append(annotation)
    self.annotations = {image_id: _drop_repeated(rows) for image_id, rows in annotations.items()}
    self.names, self._renamed = _category_names(value['categories'])

  def image(self, image_id: Hashable) -> dict[str, Any]:
    """Returns the entry of an image. Raises BadExample ('unknown image', 'duplicate id')."""
    image = self.images.get(image_id)
    if image is None:
      name = 'an unreadable id' if image_id is None else repr(image_id)
      raise BadExample('unknown image', f'an annotation of image {name}, which is not in the file')
    if image is _AMBIGUOUS:
      raise BadExample('duplicate id', f'two images have the id {image_id!r}')
    return image

  def size_annotation(self, image_id: Hashable) -> dict[str, Any]:
    """Returns {'size': (width, height)} of an image, {} if the file has no size.

    Raises:
      BadExample: like `image`; 'malformed record'.
    """
    image = self.image(image_id)
    if image.get('width') is None or image.get('height') is None:
      return {}
    return {
      'size': tuple(
        number(image[side], f'{side} of image {image_id}') for side in ('width', 'height')
      )
    }

  def objects(self, image_id: Hashable) -> list[dict[str, Any]]:
    """Returns `object` of all annotations of an image. Raises BadExample ('malformed record')."""
    return [self.object(annotation) for annotation in self.annotations.get(image_id, ())]

  def object(self, annotation: Any) -> dict[str, Any]:
    """Returns {'id', 'name', 'box', 'crowd'} of an annotation, as tasks read it.

    Raises:
      BadExample: 'malformed record'.
    """
    return {
      'id': annotation_id(annotation),
      'name': self.category_name(annotation),
      'box': box(annotation),
      'crowd': is_crowd(annotation),
    }

  def category_name(self, annotation: Any) -> str:
    """Returns the name of an annotation's category.

    Raises:
      BadExample: 'malformed record', 'duplicate id'.
    """
    category_id = as_id(field(annotation, 'category_id', (int, float, str)))
    if category_id in self._renamed:
      raise BadExample('duplicate id', f'two categories have the id {category_id!r}')
    if category_id not in self.names:
      raise BadExample(
        'malformed record', f'category {category_id!r:.80}, which is not in the file'
      )
    return self.names[category_id]


def annotation_id(annotation: Any) -> str:
  """Returns the id of an annotation as text, '' if it has none."""
  value = as_id(field(annotation, 'id', (int, float, str), ''))
  return '' if value is None else str(value)


def is_crowd(annotation: Any) -> bool:
  """Whether an annotation is a box around many things. Files have 0, '0', null or false for no."""
  value = annotation.get('iscrowd') if isinstance(annotation, dict) else None
  return value is True or as_id(value) not in (None, 0)


def box(annotation: Any) -> list[float]:
  """Returns [x1, y1, x2, y2] of an annotation's 'bbox' [x, y, width, height].

  Raises:
    BadExample: 'malformed record'.
  """
  bbox = field(annotation, 'bbox', list)
  if len(bbox) != 4:
    raise BadExample('malformed record', f'box {bbox!r:.80}, expected [x, y, width, height]')
  return list(boxes.corners([number(value, 'box') for value in bbox]))


def _check_ids(who: str, path: Path, value: dict[str, Any]) -> None:
  for name, key in (('images', 'id'), ('annotations', 'image_id'), ('categories', 'id')):
    for entry in value[name]:
      if _key(entry, key) is None:
        raise errors.make(
          who,
          f"an entry of '{name}' in {str(path)!r} without '{key}': {str(entry)[:200]}",
          'the published file',
          'download it again',
        )
  counts = Counter(_key(image, 'id') for image in value['images'])
  _, renamed = _category_names(value['categories'])
  problems = [f'two images with the id {key!r}' for key, count in counts.items() if count > 1]
  problems += [f'two categories with the id {key!r}' for key in renamed]
  if problems:
    raise errors.make(
      who, f'{problems[0]} in {str(path)!r}', 'the published file', 'download it again'
    )


def _category_names(categories: list[Any]) -> tuple[dict[int | str, str], set[int | str]]:
  """Returns id -> name of the categories with a name, and the ids that have several names."""
  names: dict[int | str, str] = {}
  renamed: set[int | str] = set()
  for entry in categories:
    category_id = _key(entry, 'id')
    name = None if category_id is None else as_text(entry.get('name'))
    name = ' '.join((name or '').split())  # 'cat ' is no other class than 'cat'.
    if name:
      if names.setdefault(category_id, name) != name:
        renamed.add(category_id)
  return {key: name for key, name in names.items() if key not in renamed}, renamed


def _key(entry: Any, name: str) -> int | str | None:
  """The id under a name, None if it is missing or no id."""
  return as_id(entry.get(name)) if isinstance(entry, dict) else None


def _drop_repeated(rows: list[Any]) -> list[Any]:
  """Returns the rows without repetitions. Different rows with one id are all kept."""
  if len({_key(row, 'id') for row in rows}) == len(rows):
    return rows
  return list({repr(row): row for row in rows}.values())
