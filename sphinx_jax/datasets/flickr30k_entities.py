"""Flickr30k Entities: captions whose phrases are linked to boxes, five a picture.

    root/
      train.txt val.txt test.txt               ids of pictures, one a line
      Sentences/1000092795.txt ...             [/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] ...
      Annotations/1000092795.xml ...           the boxes of 1, 2, ...; Sentences and Annotations also under annotations/
      flickr30k-images/1000092795.jpg ...      (or flickr30k_images/, images/)

The pictures are asked for at the University of Illinois, for research and teaching only; annotations: see the homepage.
https://bryanplummer.com/Flickr30kEntities  https://shannon.cs.illinois.edu/DenotationGraph
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.files import find

_PHRASE = re.compile(r'\[/EN#(\w+)/\S+\s+([^\[\]]+?)\s*\]')


class Flickr30kEntities:
  """An item for each sentence, as it is spelled in the file: 'Two dogs run .'

  A phrase of 'phrases' has the boxes of its entity; none where that is the whole scene, is not seen, or has no box. They are
  those of the official reader, which counts pixels from 0 and not from 1 as the files do.
  """

  TASKS = ('grounded_caption', 'caption')
  SPLITS = ('train', 'val', 'test')

  def __init__(self, root: Path, split: str, task: str, max_turns: int = 1):
    del max_turns  # Both tasks say one sentence.
    self._task = task
    names = find('flickr30k_entities', root, f'{split}.txt').read_text('utf-8', 'replace').split()
    folder = find('flickr30k_entities', root, 'Sentences', 'annotations/Sentences')
    self._boxes = find('flickr30k_entities', root, 'Annotations', 'annotations/Annotations')
    self._pictures = find(
      'flickr30k_entities', root, 'flickr30k-images', 'flickr30k_images', 'images'
    )
    # What is small is read at once, so that each sentence is an item; the XML when its picture is.
    names = Progress(dict.fromkeys(names), what='flickr30k_entities: sentences')
    self._said = {name: _lines(folder / f'{name}.txt') for name in names}
    self._rows = [
      (name, number) for name, lines in self._said.items() for number in range(max(len(lines), 1))
    ]

  def __len__(self) -> int:
    return len(self._rows)

  def item(self, index: int) -> Item:
    name, number = self._rows[index]
    lines = self._said[name]
    if not lines:
      raise BadExample('missing sentence', f'no sentence about {name}')
    pieces = _pieces(lines[number])
    annotation = {'caption': _joined(pieces)}
    if self._task == 'grounded_caption':
      size, boxes = _entities(self._boxes / f'{name}.xml')
      annotation |= {
        'size': size,
        'phrases': [{'text': text, 'boxes': boxes.get(entity, [])} for text, entity in pieces],
      }
    else:
      annotation['captions'] = [_joined(_pieces(line)) for line in lines]
    return Item(f'{name}#{number}', self._pictures / f'{name}.jpg', annotation)


def _lines(path: Path) -> list[str]:
  """The sentences of a file, none where it is missing."""
  try:
    return [
      line.strip() for line in path.read_text('utf-8', 'replace').splitlines() if line.strip()
    ]
  except (OSError, ValueError):
    return []


def _pieces(sentence: str) -> list[tuple[str, str]]:
  """[(text, entity or ''), ...], which joined are the sentence without marks. Raises BadExample ('malformed record')."""
  result, end = [], 0
  for match in _PHRASE.finditer(sentence):
    result += [(sentence[end : match.start()], ''), (match[2], match[1])]
    end = match.end()
  result.append((sentence[end:], ''))
  if any('[/EN#' in text for text, _ in result):
    raise BadExample('malformed record', f'a mark that does not end in {sentence!r:.300}')
  return [(text, entity) for text, entity in result if text]


def _joined(pieces: list[tuple[str, str]]) -> str:
  return ''.join(text for text, _ in pieces)


def _entities(path: Path) -> tuple[tuple[float, float], dict[str, list[list[float]]]]:
  """The size of a picture and {entity: its boxes}. Raises BadExample ('missing annotation', 'malformed record').

  A document type is refused, as only with one can a small file grow when it is read; so defusedxml is not needed.
  """
  try:
    text = path.read_text('utf-8')
    if '<!DOCTYPE' in text:
      raise ValueError('a document type, which no file of the dataset has')
    tree = ElementTree.fromstring(text)
    boxes: dict[str, list[list[float]]] = {}
    for thing in tree.findall('object'):
      for box in thing.findall('bndbox'):
        corners = [float(box.findtext(side, '')) - 1 for side in ('xmin', 'ymin', 'xmax', 'ymax')]
        for name in thing.findall('name'):
          boxes.setdefault((name.text or '').strip(), []).append(corners)
    return tuple(float(tree.findtext(f'size/{side}', '')) for side in ('width', 'height')), boxes
  except OSError as error:
    raise BadExample('missing annotation', f'{path}: {error.strerror}') from error
  except (ValueError, ElementTree.ParseError) as error:
    raise BadExample('malformed record', f'{path}: {error}') from error
