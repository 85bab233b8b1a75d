"""Visual Genome: phrases about regions, relations between objects, and questions, on 108,077 pictures.

    root/
      image_data.json region_descriptions.json relationships.json question_answers.json   (that of the task, and image_data)
      VG_100K/2407890.jpg ...    (or images/VG_100K/, images2/VG_100K/)
      VG_100K_2/1.jpg ...        (or images/VG_100K_2/, images2/VG_100K_2/)

It has no official split: 'val' has the pictures whose id is a multiple of 20, 'train' the others, 'all' both. About half of
the pictures are COCO's, of all its splits. CC BY 4.0. https://homes.cs.washington.edu/~ranjay/visualgenome
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.core import boxes
from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.fields import field, name_of, number, unique
from sphinx_jax.datasets.files import find, read_json
from sphinx_jax.datasets.qa import question

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
_FOLDERS = ('VG_100K', 'VG_100K_2')
_VAL = 20


class VisualGenome:
  """At most max_turns regions, relations or questions of a picture an item; beside relations, all objects of the picture.

  What is said of a picture is kept as the bytes of its JSON until it is asked for, as 5 million regions would take some
  5 GB else. A malformed row is a BadExample of the item that it is in.
  """

  TASKS = ('rec', 'reg', 'relation', 'vqa')
  SPLITS = ('train', 'val', 'all')

  def __init__(self, root: Path, split: str, task: str, max_turns: int = 1):
    self._task, self._max_turns = task, max_turns
    self._about = _about(find('visual_genome', root, 'image_data.json'))
    self._folders = _folders(root)
    rows = [
      row
      for row in _read_rows(root, *_FILES[task])
      if split == 'all' or (split == 'val') == (row.image % _VAL == 0)
    ]
    self._rows, self._names = rows, unique(str(row.image) for row in rows)
    # The number of the first item of each picture, and at the end that of all items.
    self._first = np.cumsum([0] + [-(-row.count // max_turns) for row in rows])

  def __len__(self) -> int:
    return int(self._first[-1])

  def item(self, index: int) -> Item:
    place = int(np.searchsorted(self._first, index, side='right')) - 1
    begin = (index - int(self._first[place])) * self._max_turns
    image, rows = self._rows[place].image, self._rows[place].rows()
    about = self._about.get(image)
    if about is None:
      raise BadExample('unknown image', f'image {image}, which is not once in image_data.json')
    picture = re.search(r'(VG_100K(?:_2)?)/([^/]+)$', field(about, 'url', str))
    if not picture:
      raise BadExample('malformed record', f'the address {about["url"]!r:.80} of image {image}')
    size = tuple(
      number(about.get(side), f'{side} of image {image}') for side in ('width', 'height')
    )
    lists = _READ[self._task](rows[begin : begin + self._max_turns], rows)
    return Item(
      f'{self._names[place]}/{begin}',
      self._folders[picture[1]] / picture[2],
      {'size': size, **lists},
    )


class _Packed:
  """The rows of a picture as the bytes of their JSON, equal ones once."""

  __slots__ = ('image', 'count', 'data')

  def __init__(self, image: int, rows: list):
    texts = list(dict.fromkeys(json.dumps(row, default=str) for row in rows))
    self.image, self.count, self.data = image, len(texts), f'[{",".join(texts)}]'.encode()

  def rows(self) -> list:
    return json.loads(self.data)


def _read_rows(root: Path, name: str, key: str) -> list[_Packed]:
  """What a file says of each picture; entries without an id or rows stand for a picture 0, which there is not."""
  path = find('visual_genome', root, f'{name}.json')
  with Progress(what=f'visual_genome: {name}', unit='pictures') as bar:

    def packed(entry: dict) -> Any:
      image = entry.get('image_id', entry.get('id'))  # 'id' in the first release.
      if isinstance(image, int) and isinstance(entry.get(key), list):
        bar.update(1)
        return _Packed(image, entry[key])
      return {name: value for name, value in entry.items() if name not in _UNUSED}

    rows = read_json('visual_genome', path, list, packed)
  rows = [row if isinstance(row, _Packed) else _Packed(0, [row]) for row in rows]
  return list({(row.image, row.data): row for row in rows}.values())


def _about(path: Path) -> dict[int, dict | None]:
  """Image id -> its entry, None where two differ."""
  result: dict[int, dict | None] = {}
  for entry in read_json('visual_genome', path, list):
    if isinstance(entry, dict):
      image = entry.get('image_id', entry.get('id'))
      if isinstance(image, int):
        result[image] = entry if result.get(image, entry) == entry else None
  return result


def _folders(root: Path) -> dict[str, Path]:
  """Where the two halves of the pictures are; of one that is not there, the pictures will be missing."""
  find('visual_genome', root, *(place for folder in _FOLDERS for place in _places(folder)))
  return {
    folder: next(
      (root / place for place in _places(folder) if (root / place).is_dir()), root / folder
    )
    for folder in _FOLDERS
  }


def _places(folder: str) -> tuple[str, ...]:
  return folder, f'images/{folder}', f'images2/{folder}'


def _regions(asked: list, rows: list) -> dict:
  del rows
  return {
    'objects': [
      {
        'id': name_of(row, 'region_id'),
        'name': _words(row, 'phrase'),
        'box': _box(row, 'width', 'height'),
        'expressions': [_words(row, 'phrase')],
      }
      for row in asked
    ]
  }


def _told(asked: list, rows: list) -> dict:
  """Regions whose phrase no other region of the picture has."""
  same = Counter(str(row.get('phrase')).lower() for row in rows if isinstance(row, dict))
  regions = _regions(asked, rows)['objects']
  alone = [region for region, row in zip(regions, asked) if same[str(row['phrase']).lower()] == 1]
  if not alone:
    raise BadExample(
      'ambiguous expression', f'{regions[0]["name"]!r:.80} is said of several regions'
    )
  return {'objects': alone}


def _relations(asked: list, rows: list) -> dict:
  """The relations asked for, between their places in the list of all objects of the picture."""
  places: dict[tuple, int] = {}

  def place(thing: dict) -> int:
    return places.setdefault((thing['id'], thing['name'], *thing['box']), len(places))

  relations = [
    {'subject': place(subject), 'predicate': predicate, 'object': place(other)}
    for subject, predicate, other in map(_triple, asked)
  ]
  for row in rows:
    try:
      subject, _, other = _triple(row)
    except BadExample:
      continue  # Of another item, which says so.
    place(subject), place(other)
  return {
    'objects': [{'id': name, 'name': text, 'box': list(box)} for name, text, *box in places],
    'relations': relations,
  }


def _triple(row: Any) -> tuple[dict, str, dict]:
  return (
    _thing(field(row, 'subject', dict)),
    _words(row, 'predicate').lower(),
    _thing(field(row, 'object', dict)),
  )


def _thing(entry: dict) -> dict:
  names = field(entry, 'names', list, [])  # Where the file has no 'name'.
  name = _words({'name': names[0]} if names else entry, 'name')
  return {'id': name_of(entry, 'object_id'), 'name': name, 'box': _box(entry, 'w', 'h')}


def _questions(asked: list, rows: list) -> dict:
  del rows
  return {
    'questions': [
      question(name_of(row, 'qa_id'), field(row, 'question', str), [_words(row, 'answer')])
      for row in asked
    ]
  }


def _box(row: dict, width: str, height: str) -> list[float]:
  return list(boxes.corners([number(row.get(key), key) for key in ('x', 'y', width, height)]))


def _words(row: Any, key: str) -> str:
  """A text without the full stop that some of them end with. Raises BadExample ('malformed record', 'empty answer')."""
  text = ' '.join(field(row, key, str).split()).rstrip(' .')
  if not text:
    raise BadExample('empty answer', f'{key!r} has no words in {row!r:.200}')
  return text


_READ = {'rec': _told, 'reg': _regions, 'relation': _relations, 'vqa': _questions}
