"""RefCOCO, RefCOCO+ and RefCOCOg: sentences that tell one object of a COCO picture from all others.

    root/                                 (the refer API's data folder; its subfolder refcoco itself will do, too)
      refcoco/refs(unc).p refs(google).p instances.json
      refcoco+/refs(unc).p instances.json
      refcocog/refs(umd).p refs(google).p instances.json
      images/mscoco/images/train2014/COCO_train2014_000000581857.jpg ...
                                          (or train2014/, images/train2014/, ../coco/train2014/)

`by=` names who made the split: unc (RefCOCO and +), umd (g), or google. `images=` names another folder that holds
train2014. The refs are a pickle of Python 2, which could run any code; it is read by a reader that knows only plain data.
Annotations Apache 2.0, pictures as COCO's. https://github.com/lichengunc/refer
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.coco_json import CocoJson
from sphinx_jax.datasets.fields import field, name_of
from sphinx_jax.datasets.files import find
from sphinx_jax.datasets.qa import Questions

_TREES = ('images/mscoco/images/train2014', 'train2014', 'images/train2014', '../coco/train2014')
# What Python 2 writes by name of plain data, and what it is now.
_PLAIN = {
  'list': list,
  'dict': dict,
  'tuple': tuple,
  'set': set,
  'frozenset': frozenset,
  'str': str,
  'unicode': str,
  'int': int,
  'long': int,
  'float': float,
  'bool': bool,
}


class RefCoco(Questions):
  """Every sentence is an object of an item, with the sentence's id; no item holds one thing twice.

  For 'rec' the sentence is its only expression. For 'reg' the others of the same thing follow it, which are right as well.
  """

  TASKS = ('rec', 'reg')
  SPLITS = ('train', 'val', 'testA', 'testB', 'test')
  _NAME, _BY = 'refcoco', 'unc'

  def __init__(
    self, root: Path, split: str, task: str, max_turns: int = 1, by: str = '', images: str = ''
  ):
    file = f'refs({by or self._BY}).p'
    refs_file = find(self._NAME, root, f'{self._NAME}/{file}', file).absolute()
    self._task = task
    self._instances = CocoJson(self._NAME, refs_file.parent / 'instances.json')
    self._things = {
      row.get('id'): row
      for rows in self._instances.annotations.values()
      for row in rows
      if isinstance(row, dict) and isinstance(row.get('id'), int)
    }
    self._pictures = find(self._NAME, root / images if images else refs_file.parent.parent, *_TREES)
    refs = read_pickle(self._NAME, refs_file)
    splits = {str(ref['split']) for ref in refs if isinstance(ref, dict) and 'split' in ref}
    if split not in splits:
      raise errors.make(
        f"source '{self._NAME}'",
        f"no ref of split '{split}' in {str(refs_file)!r}",
        f'one of {", ".join(sorted(splits))}',
        'choose one of them, or another file with by=',
      )
    super().__init__(self._NAME, list(_sentences(refs, split)), max_turns)

  def _read(self, record: tuple[dict, list, int]) -> tuple[Any, dict]:
    ref, said, rank = record
    image, number = field(ref, 'image_id', int), field(ref, 'ann_id', int)
    if number not in self._things:
      raise BadExample('malformed record', f'annotation {number}, which is not in instances.json')
    name, sentence = said[rank]
    others = [other for _, other in said] if self._task == 'reg' else []
    entry = {'id': name, 'image_id': image, 'expressions': list(dict.fromkeys([sentence, *others]))}
    return (image, rank), self._instances.object(self._things[number]) | entry

  def _image(self, picture: tuple[int, int]) -> Path:
    return self._pictures / field(self._instances.image(picture[0]), 'file_name', str)

  def _annotation(self, entries: list[dict]) -> dict:
    return self._instances.about(entries[0]['image_id']) | {'objects': entries}


class RefCocoPlus(RefCoco):
  """RefCOCO+: sentences without words of place."""

  _NAME = 'refcoco+'


class RefCocoG(RefCoco):
  """RefCOCOg: longer sentences; the split of umd shares no picture between train, val and test."""

  SPLITS = ('train', 'val', 'test')
  _NAME, _BY = 'refcocog', 'umd'


def _sentences(refs: list, split: str) -> Iterator[tuple[dict, list, int] | BadExample]:
  """(ref, [(id, sentence), ...], which of them) of a split; the k-th of each thing are asked together."""
  for ref in refs:
    try:
      if field(ref, 'split', str) != split:
        continue
      said = [
        (name_of(one, 'sent_id'), ' '.join(field(one, 'sent', str).split()))
        for one in field(ref, 'sentences', list)
      ]
      if not said or not all(sentence for _, sentence in said):
        raise BadExample('empty question', f'a sentence of ref {ref.get("ref_id")!r} has no words')
      yield from ((ref, said, rank) for rank in range(len(said)))
    except BadExample as error:
      yield error


class _PlainUnpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> type:
    if module in ('builtins', '__builtin__') and name in _PLAIN:
      return _PLAIN[name]
    raise pickle.UnpicklingError(
      f'it asks for {module}.{name}, which is no plain data and is not run'
    )


def read_pickle(name: str, path: Path) -> list:
  """The list in a pickle of plain data; nothing that the file names is imported or called.

  Raises:
    SphinxError: missing, cut short, no list, or it asks for anything but plain data, which is named.
  """
  try:
    with path.open('rb') as file:
      value = _PlainUnpickler(file, encoding='utf-8', errors='replace').load()
  except Exception as error:  # The module says that damaged data may raise any.
    raise errors.make(
      f"source '{name}'",
      f'{str(path)!r}, which cannot be read ({error})',
      'a pickle of lists, dicts, texts and numbers',
      'use the official file, and do not open this one with anything else',
    ) from error
  if not isinstance(value, list):
    raise errors.make(
      f"source '{name}'",
      f'a {type(value).__name__} in {str(path)!r}',
      'a list of refs',
      'check that it is the official file',
    )
  return value
