"""RefCOCO, RefCOCO+ and RefCOCOg: sentences that single out one object of a COCO image.

    root/                                 (the data folder of the refer API, or its folder refcoco)
      refcoco/refs(unc).p refs(google).p instances.json
      refcoco+/refs(unc).p instances.json
      refcocog/refs(umd).p refs(google).p instances.json
      images/mscoco/images/train2014/COCO_train2014_000000581857.jpg ...
                                          (or train2014/, images/train2014/, ../coco/train2014/)

The setting `by` names the author of the split: unc (RefCOCO and RefCOCO+), umd (RefCOCOg), or
google. The setting `images` names another directory with train2014. The refs are a pickle of
Python 2. A pickle can run any code, so it is read by a reader that accepts only plain data.
Licence: annotations Apache 2.0, images as COCO.
Homepage: https://github.com/lichengunc/refer
"""

import codecs
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import files
from sphinx_jax.datasets.coco_json import CocoJson
from sphinx_jax.datasets.fields import as_id, field, id_field, number_field
from sphinx_jax.datasets.qa import Questions

_IMAGE_FOLDERS = (
  'images/mscoco/images/train2014',
  'train2014',
  'images/train2014',
  '../coco/train2014',
)
# The types of plain data that Python 2 stores by name.
_PLAIN_TYPES = {
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


def _decode_latin1(error: UnicodeDecodeError) -> tuple[str, int]:
  return error.object[error.start : error.end].decode('latin-1'), error.end


# Bytes that are no UTF-8 are taken for Latin-1, in which Python 2 programs often wrote.
_LATIN1 = 'sphinx_jax.latin1'
codecs.register_error(_LATIN1, _decode_latin1)


class _Sentence(NamedTuple):
  """Sentence `rank` of a ref; `sentences` are all of its (id, text)."""

  ref: dict[str, Any]
  sentences: list[tuple[str, str]]
  rank: int


class RefCoco(Questions):
  """Every sentence is an object of an item, with the sentence's id. No item has one object twice.

  For 'rec' the sentence is the object's only expression. For 'reg' the other sentences about the
  same object follow it, because they are right answers too.

  Settings:
    by: author of the split.
    images: another directory with train2014, relative to root.
  """

  NAME = 'refcoco'
  TASKS = ('rec', 'reg')
  SPLITS = ('train', 'val', 'testA', 'testB', 'test')
  BY = 'unc'

  def _open(self, *, by: str = '', images: str = '') -> None:
    name = f'refs({by or self.BY}).p'
    refs_file = self._find(f'{self.NAME}/{name}', name).absolute()
    self._instances = CocoJson(self._who(), refs_file.parent / 'instances.json')
    self._annotations: dict[str, Any] = {}  # By id; None: two different ones.
    for row in itertools.chain.from_iterable(self._instances.annotations.values()):
      key = as_id(row.get('id')) if isinstance(row, dict) else None
      if key is not None:
        self._annotations[str(key)] = None if str(key) in self._annotations else row
    image_root = self.root / images if images else refs_file.parent.parent
    self._images = files.find(self._who(), image_root, *_IMAGE_FOLDERS)
    refs = read_pickle(self._who(), refs_file)
    splits = {str(ref['split']) for ref in refs if isinstance(ref, dict) and 'split' in ref}
    if self.split not in splits:
      raise self._error(
        f"no ref of split '{self.split}' in {str(refs_file)!r}",
        f'one of {", ".join(sorted(splits))}',
        'choose one of them, or another file with by=',
      )
    self._set_records(list(_find_sentences(refs, self.split)))

  def _read(self, record: _Sentence) -> tuple[tuple[int, int], dict[str, Any]]:
    image_id = number_field(record.ref, 'image_id')
    key = id_field(record.ref, 'ann_id')
    if key not in self._annotations:
      raise BadExample('malformed record', f'annotation {key}, which is not in instances.json')
    annotation = self._annotations[key]
    if annotation is None:
      raise BadExample('duplicate id', f'two annotations have the id {key}')
    sentence_id, sentence = record.sentences[record.rank]
    expressions = [sentence]
    if self.task == 'reg':
      expressions += [other for _, other in record.sentences]
    entry = self._instances.object(annotation)
    entry['id'] = sentence_id
    entry['image_id'] = image_id
    entry['expressions'] = list(dict.fromkeys(expressions))
    # With the rank in the key, the k-th sentences of all objects of an image are asked together.
    return (image_id, record.rank), entry

  def _image(self, image: tuple[int, int]) -> Path:
    image_id, _ = image
    return self._images / field(self._instances.image(image_id), 'file_name', str)

  def _annotation(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return self._instances.size_annotation(entries[0]['image_id']) | {'objects': entries}


class RefCocoPlus(RefCoco):
  """RefCOCO+: sentences without words of place."""

  NAME = 'refcoco+'


class RefCocoG(RefCoco):
  """RefCOCOg: longer sentences. The umd split has no image in two of train, val and test."""

  NAME = 'refcocog'
  SPLITS = ('train', 'val', 'test')
  BY = 'umd'


def _find_sentences(refs: list[Any], split: str) -> Iterator[_Sentence | BadExample]:
  """The sentences of a split."""
  for ref in refs:
    try:
      if field(ref, 'split', str) != split:
        continue
      sentences = [
        (id_field(sentence, 'sent_id'), ' '.join(field(sentence, 'sent', str).split()))
        for sentence in field(ref, 'sentences', list)
      ]
      if not sentences or not all(text for _, text in sentences):
        raise BadExample('empty question', f'a sentence of ref {ref.get("ref_id")!r} has no words')
    except BadExample as error:
      yield error
      continue
    for rank in range(len(sentences)):
      yield _Sentence(ref, sentences, rank)


def _encode_latin1(text: str, encoding: str) -> bytes:
  if encoding != 'latin1':
    raise pickle.UnpicklingError(f'bytes that are stored as {encoding!r:.80}')
  return str(text).encode('latin-1')


class _PlainUnpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if module in ('builtins', '__builtin__') and name in _PLAIN_TYPES:
      return _PLAIN_TYPES[name]
    if (module, name) == ('_codecs', 'encode'):  # How Python 3 stores bytes in protocol 2.
      return _encode_latin1
    raise pickle.UnpicklingError(f'it contains {module}.{name}, which is not plain data: not run')


def read_pickle(who: str, path: Path) -> list[Any]:
  """Returns the list in a pickle of plain data. Nothing that the file names is imported or called.

  Args:
    who: the reader, for messages.
    path: the file.

  Raises:
    SphinxError: the file is missing or cut short, holds no list, or contains anything except plain
      data (the message has its name).
  """
  try:
    with path.open('rb') as file:
      value = _PlainUnpickler(file, encoding='utf-8', errors=_LATIN1).load()
  except Exception as error:  # pickle documents that damaged data may raise any exception.
    raise errors.make(
      who,
      f'{str(path)!r}, which cannot be read ({error})',
      'a pickle of lists, dicts, texts and numbers',
      'use the published file, and do not open this one with anything else',
    ) from error
  if not isinstance(value, list):
    raise errors.make(
      who,
      f'a {type(value).__name__} in {str(path)!r}',
      'a list of refs',
      'check that it is the published file',
    )
  # The file was loaded with encoding='bytes' and saved again.
  has_bytes = bool(value) and isinstance(value[0], dict) and b'split' in value[0]
  return _without_bytes(value) if has_bytes else value


def _without_bytes(value: Any) -> Any:
  """A copy with texts in place of bytes, keys included."""
  if isinstance(value, bytes):
    return value.decode('utf-8', _LATIN1)
  if isinstance(value, dict):
    return {_without_bytes(key): _without_bytes(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(_without_bytes, value))
  return value
