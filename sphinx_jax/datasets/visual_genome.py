"""Visual Genome: phrases about regions, relations of objects, and questions, on 108,077 images.

    root/
      image_data.json                      always needed, with the file of the task:
      region_descriptions.json relationships.json question_answers.json
      VG_100K/2407890.jpg ...              (or images/VG_100K/, images2/VG_100K/)
      VG_100K_2/1.jpg ...                  (or images/VG_100K_2/, images2/VG_100K_2/)

The dataset has no split of its own. Here 'val' has the images whose id is a multiple of 20, 'train'
the others, and 'all' both. About half of the images are COCO's, of all its splits.
Licence: CC BY 4.0.
Homepage: https://homes.cs.washington.edu/~ranjay/visualgenome
"""

import json
import re
from collections import Counter
from typing import Any

import numpy as np

from sphinx_jax.core import boxes
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import as_id, field, id_field, number, unique_ids
from sphinx_jax.datasets.files import image_folder
from sphinx_jax.datasets.qa import question

# Task -> file and the key of an image's rows in it.
_FILES = {
  'rec': ('region_descriptions', 'regions'),
  'reg': ('region_descriptions', 'regions'),
  'relation': ('relationships', 'relationships'),
  'vqa': ('question_answers', 'qas'),
}
_UNUSED = frozenset(
  {
    'synsets',
    'question_synsets',
    'answer_synsets',
    'a_objects',
    'q_objects',
    'merged_object_ids',
    'image_id',
  }
)
_IMAGE_FOLDERS = ('VG_100K', 'VG_100K_2')
_VAL_STEP = 20


class VisualGenome(Family):
  """An item is an image with at most max_turns of its regions, relations or questions.

  An item of relations also has all objects of the image. The rows of an image are kept as the bytes
  of their JSON until they are read, because keeping 5 million regions as objects would take about
  5 GB. A malformed row is a BadExample of its item.
  """

  NAME = 'visual_genome'
  TASKS = ('rec', 'reg', 'relation', 'vqa')
  SPLITS = ('train', 'val', 'all')

  def _open(self) -> None:
    image_data = self._read_json(self._find('image_data.json'), list)
    self._image_entries = _entries_by_id(image_data)
    self._find(*(path for folder in _IMAGE_FOLDERS for path in _folder_paths(folder)))
    self._folders = {
      folder: image_folder(self.root, '', *_folder_paths(folder)) for folder in _IMAGE_FOLDERS
    }
    self._rows = [rows for rows in self._read_rows() if self._in_split(rows.image)]
    self._ids = unique_ids(str(rows.image) for rows in self._rows)
    # The index of the first item of each image, and at the end the number of items.
    item_counts = [-(-rows.count // self.max_turns) for rows in self._rows]
    self._first = np.cumsum([0, *item_counts])

  def __len__(self) -> int:
    return int(self._first[-1])

  def item(self, index: int) -> Item:
    """Raises BadExample ('unknown image', 'malformed record', 'empty answer', ...)."""
    place = int(np.searchsorted(self._first, index, side='right')) - 1
    begin = (index - int(self._first[place])) * self.max_turns
    image_id, rows = self._rows[place].image, self._rows[place].unpack()
    entry = self._image_entries.get(image_id)
    if entry is None:
      raise BadExample(
        'unknown image', f'image {image_id} does not have exactly one entry in image_data.json'
      )
    path = re.search(r'(VG_100K(?:_2)?)/([^/]+)$', field(entry, 'url', str))
    if not path:
      raise BadExample('malformed record', f'the URL {entry["url"]!r:.80} of image {image_id}')
    folder, file_name = path.groups()
    size = tuple(
      number(entry.get(side), f'{side} of image {image_id}') for side in ('width', 'height')
    )
    annotation = _ANNOTATE[self.task](rows[begin : begin + self.max_turns], rows)
    return Item(
      f'{self._ids[place]}/{begin}',
      (self._folders[folder] / file_name,),
      {'size': size, **annotation},
    )

  def _in_split(self, image_id: int) -> bool:
    is_val = image_id % _VAL_STEP == 0
    return self.split == 'all' or (self.split == 'val') == is_val

  def _read_rows(self) -> list['_ImageRows']:
    """Reads the rows of all images.

    Entries without an id or without rows are filed under image 0, which does not exist.
    """
    name, key = _FILES[self.task]
    path = self._find(f'{name}.json')
    with Progress(what=f'visual_genome: {name}', unit='images') as progress:

      def pack(entry: dict[str, Any]) -> Any:
        image_id = _image_id(entry)
        if isinstance(image_id, int) and isinstance(entry.get(key), list):
          progress.update(1)
          return _ImageRows(image_id, entry[key])
        return {name: value for name, value in entry.items() if name not in _UNUSED}

      entries = self._read_json(path, list, pack)
    images = [
      entry if isinstance(entry, _ImageRows) else _ImageRows(0, [entry]) for entry in entries
    ]
    return list({(rows.image, rows.data): rows for rows in images}.values())


class _ImageRows:
  """The rows of an image, packed as the bytes of their JSON. Equal rows are kept once.

  Attributes:
    image: image id.
    count: number of rows.
    data: JSON list of the rows.
  """

  __slots__ = ('image', 'count', 'data')

  def __init__(self, image: int, rows: list[Any]) -> None:
    texts = list(dict.fromkeys(json.dumps(row, default=str) for row in rows))
    self.image = image
    self.count = len(texts)
    self.data = f'[{",".join(texts)}]'.encode()

  def unpack(self) -> list[Any]:
    return json.loads(self.data)


def _image_id(entry: dict[str, Any]) -> Any:
  return as_id(entry.get('image_id', entry.get('id')))  # 'id' in the first release.


def _entries_by_id(entries: list[Any]) -> dict[int, dict[str, Any] | None]:
  """Image id -> its entry of image_data.json, None if two entries differ."""
  result: dict[int, dict[str, Any] | None] = {}
  for entry in entries:
    if isinstance(entry, dict):
      image_id = _image_id(entry)
      if isinstance(image_id, int):
        result[image_id] = entry if result.get(image_id, entry) == entry else None
  return result


def _folder_paths(folder: str) -> tuple[str, ...]:
  return folder, f'images/{folder}', f'images2/{folder}'


def _regions(asked: list[Any], rows: list[Any]) -> dict[str, Any]:
  del rows
  objects = [
    {
      'id': id_field(row, 'region_id'),
      'name': _words(row, 'phrase'),
      'box': _box(row, 'width', 'height'),
      'expressions': [_words(row, 'phrase')],
    }
    for row in asked
  ]
  return {'objects': objects}


def _unambiguous_regions(asked: list[Any], rows: list[Any]) -> dict[str, Any]:
  """The regions whose phrase no other region of the image has."""
  counts = Counter(str(row.get('phrase')).lower() for row in rows if isinstance(row, dict))
  regions = _regions(asked, rows)['objects']
  unambiguous = [
    region for region, row in zip(regions, asked) if counts[str(row['phrase']).lower()] == 1
  ]
  if not unambiguous:
    raise BadExample(
      'ambiguous expression', f'{regions[0]["name"]!r:.80} is the phrase of several regions'
    )
  return {'objects': unambiguous}


def _relations(asked: list[Any], rows: list[Any]) -> dict[str, Any]:
  """The relations to ask about, between their indices in the list of all objects of the image."""
  indices: dict[tuple[Any, ...], int] = {}

  def index_of(thing: dict[str, Any]) -> int:
    return indices.setdefault((thing['id'], thing['name'], *thing['box']), len(indices))

  relations = []
  for row in asked:
    subject, predicate, other = _triple(row)
    relations.append(
      {'subject': index_of(subject), 'predicate': predicate, 'object': index_of(other)}
    )
  for row in rows:
    try:
      subject, _, other = _triple(row)
    except BadExample:
      continue  # It belongs to another item, which raises.
    index_of(subject)
    index_of(other)
  objects = [{'id': key, 'name': name, 'box': list(box)} for key, name, *box in indices]
  return {'objects': objects, 'relations': relations}


def _triple(row: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
  """(subject, predicate, object)."""
  return (
    _thing(field(row, 'subject', dict)),
    _words(row, 'predicate').lower(),
    _thing(field(row, 'object', dict)),
  )


def _thing(entry: dict[str, Any]) -> dict[str, Any]:
  names = field(entry, 'names', list, [])  # In the files without 'name'.
  name = _words({'name': names[0]} if names else entry, 'name')
  return {'id': id_field(entry, 'object_id'), 'name': name, 'box': _box(entry, 'w', 'h')}


def _questions(asked: list[Any], rows: list[Any]) -> dict[str, Any]:
  del rows
  questions = [
    question(id_field(row, 'qa_id'), field(row, 'question', str), [_words(row, 'answer')])
    for row in asked
  ]
  return {'questions': questions}


def _box(row: dict[str, Any], width: str, height: str) -> list[float]:
  return list(boxes.corners([number(row.get(key), key) for key in ('x', 'y', width, height)]))


def _words(row: Any, key: str) -> str:
  """A text without the full stop at the end that some of them have.

  Raises:
    BadExample: 'malformed record', 'empty answer'.
  """
  text = ' '.join(field(row, key, str).split()).rstrip(' .')
  if not text:
    raise BadExample('empty answer', f'{key!r} has no words in {row!r:.200}')
  return text


# Task -> function of (rows to ask about, all rows of the image) that returns the annotation.
_ANNOTATE = {
  'rec': _unambiguous_regions,
  'reg': _regions,
  'relation': _relations,
  'vqa': _questions,
}
