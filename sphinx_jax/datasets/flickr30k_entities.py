"""Flickr30k Entities: captions whose phrases are linked to boxes, five per image.

    root/
      train.txt val.txt test.txt               image ids, one per line
      Sentences/1000092795.txt ...             [/EN#1/people Two young guys] with [/EN#2/bodyparts
                                               shaggy hair] ...
      Annotations/1000092795.xml ...           the boxes of 1, 2, ...
                                               (both directories may be in annotations/)
      flickr30k-images/1000092795.jpg ...      (or flickr30k_images/, images/)

Licence: the images are given out by the University of Illinois on request, for research and
teaching only; for the annotations see the homepage.
Homepages: https://bryanplummer.com/Flickr30kEntities and
https://shannon.cs.illinois.edu/DenotationGraph
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from sphinx_jax.core.progress import Progress
from sphinx_jax.core.text import is_unicode
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Family, Item

_PHRASE = re.compile(r'\[/EN#(\w+)/\S+\s+([^\[\]]+?)\s*\]')


class Flickr30kEntities(Family):
  """An item for each sentence, spelled like in the file: 'Two dogs run .'

  A phrase of 'phrases' has the boxes of its entity. It has none if the entity is the whole scene,
  is not visible, or has no box. Pixels count from 1 in the files, and from 0 here, as in
  the authors' reader.
  """

  NAME = 'flickr30k_entities'
  TASKS = ('grounded_caption', 'caption')
  SPLITS = ('train', 'val', 'test')

  def _open(self) -> None:
    image_ids = self._find(f'{self.split}.txt').read_text('utf-8-sig', 'replace').split()
    sentences = self._find('Sentences', 'annotations/Sentences')
    self._boxes = self._find('Annotations', 'annotations/Annotations')
    self._images = self._find('flickr30k-images', 'flickr30k_images', 'images')
    # The sentences are small and read at once, because each is an item. The XML is read with its
    # image.
    unique = Progress(dict.fromkeys(image_ids), what='flickr30k_entities: sentences')
    self._sentences = {name: _read_lines(sentences / f'{name}.txt') for name in unique}
    self._items = [
      (name, number)
      for name, lines in self._sentences.items()
      for number in range(max(len(lines), 1))  # An image without a sentence is a bad example.
    ]

  def __len__(self) -> int:
    return len(self._items)

  def item(self, index: int) -> Item:
    """Raises BadExample ('missing sentence', 'missing annotation', 'malformed record')."""
    name, number = self._items[index]
    lines = self._sentences[name]
    if not lines:
      raise BadExample('missing sentence', f'no sentence about {name}')
    if not is_unicode(lines[number]):
      raise BadExample('not utf-8', f'sentence {number} about {name}: {lines[number]!r:.200}')
    pieces = _split_phrases(lines[number])
    annotation = {'caption': _join(pieces)}
    if self.task == 'grounded_caption':
      size, boxes = _read_boxes(self._boxes / f'{name}.xml')
      annotation['size'] = size
      annotation['phrases'] = [
        {'text': text, 'boxes': boxes.get(entity, [])} for text, entity in pieces
      ]
    else:
      annotation['captions'] = [_join(_split_phrases(line)) for line in lines]
    return Item(f'{name}#{number}', (self._images / f'{name}.jpg',), annotation)


def _read_lines(path: Path) -> list[str]:
  """The sentences of a file, [] if it is missing."""
  try:
    lines = path.read_text('utf-8-sig', 'surrogateescape').splitlines()
  except (OSError, ValueError):
    return []
  return [line.strip() for line in lines if line.strip()]


def _split_phrases(sentence: str) -> list[tuple[str, str]]:
  """Splits a sentence into (text, entity or ''). The joined texts are the sentence without marks.

  Raises:
    BadExample: 'malformed record'.
  """
  pieces, end = [], 0
  for match in _PHRASE.finditer(sentence):
    entity, phrase = match.groups()
    pieces += [(sentence[end : match.start()], ''), (phrase, entity)]
    end = match.end()
  pieces.append((sentence[end:], ''))
  if any('[/EN#' in text for text, _ in pieces):
    raise BadExample('malformed record', f'a mark without an end in {sentence!r:.300}')
  return [(text, entity) for text, entity in pieces if text]


def _join(pieces: list[tuple[str, str]]) -> str:
  return ''.join(text for text, _ in pieces)


def _read_boxes(path: Path) -> tuple[tuple[float, float], dict[str, list[list[float]]]]:
  """Returns the (width, height) of an image and its boxes by entity.

  A document type is refused, so defusedxml is not needed: only entities that a document type
  declares let a small file expand when it is parsed.

  Raises:
    BadExample: 'missing annotation', 'malformed record'.
  """
  try:
    text = path.read_text('utf-8')
    if '<!DOCTYPE' in text:
      raise ValueError('a document type, which no file of the dataset has')
    tree = ElementTree.fromstring(text)
    boxes: dict[str, list[list[float]]] = {}
    for element in tree.findall('object'):
      for box in element.findall('bndbox'):
        corners = [float(box.findtext(side, '')) - 1 for side in ('xmin', 'ymin', 'xmax', 'ymax')]
        for name in element.findall('name'):
          boxes.setdefault((name.text or '').strip(), []).append(corners)
    width, height = (float(tree.findtext(f'size/{side}', '')) for side in ('width', 'height'))
    return (width, height), boxes
  except OSError as error:
    raise BadExample('missing annotation', f'{path}: {error.strerror}') from error
  except (ValueError, ElementTree.ParseError) as error:
    raise BadExample('malformed record', f'{path}: {error}') from error
