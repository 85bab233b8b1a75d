"""What the families of questions share: fields read with care, answers, letters of choices, and items by picture."""

import string
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.core.progress import progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.data.sources import base
from sphinx_jax.data.sources.files import read_json, without_collection


class Questions:
  """A family (base.py) whose records are questions about pictures.

  An item is a picture with at most max_turns of its questions, and every question is in one item. Questions without an
  answer are in items of their own, so that they do not take answered ones with them. A record that cannot be read, or
  is a BadExample, is an item too, which raises it. Of ids that occur again, the same question is dropped and another
  one gets '#2'.

  A family says `_read(record)`: (picture, entry), entry as `question` makes it; and `_image(picture)`: where it is.
  """

  def __init__(self, name: str, records: Iterable[Any], max_turns: int):
    self._bad: list[BadExample] = []
    with without_collection():
      rows = _unique(self._rows(progress(records, what=f'{name}: records')))
      groups = base.grouped(rows, lambda row: (row[0], row[1].get('answer') != ''))
      self._groups = list(base.chunks(groups, max_turns))

  def __len__(self) -> int:
    return len(self._groups) + len(self._bad)

  def item(self, index: int) -> base.Item:
    """Raises BadExample ('malformed record', 'empty question', 'not json')."""
    if index >= len(self._groups):
      bad = self._bad[index - len(self._groups)]
      raise BadExample(bad.reason, bad.message)
    rows = self._groups[index]
    picture, first = rows[0]
    return base.Item(first['id'], self._image(picture), self._annotation([entry for _, entry in rows]))

  def _read(self, record: Any) -> tuple[Any, dict]:
    raise NotImplementedError

  def _image(self, picture: Any) -> Path | bytes | None:
    raise NotImplementedError

  def _annotation(self, entries: list[dict]) -> dict:
    return {'questions': entries}

  def _rows(self, records: Iterable[Any]) -> Iterator[tuple[Any, dict]]:
    for record in records:
      try:
        if isinstance(record, BadExample):
          raise record
        yield self._read(record)
      except BadExample as error:
        self._bad.append(error)


def _unique(rows: Iterable[tuple[Any, dict]]) -> Iterator[tuple[Any, dict]]:
  seen: dict[str, list] = {}
  for row in rows:
    picture, entry = row
    versions = seen.setdefault(entry['id'], [])
    if row in versions:
      continue
    versions.append(row)
    yield row if len(versions) == 1 else (picture, entry | {'id': f"{entry['id']}#{len(versions)}"})


def question(number: str, text: str, answers: Sequence[str], **more: Any) -> dict:
  """One entry of 'questions': its trained answer is the most common of the annotators', the first of equals.

  Args:
    number: the id.
    text: what is asked.
    answers: of all annotators; [] where they are not told, and the trained answer is ''.
    more: 'answer' where files name the one to train; 'context', 'instruction', 'choices' (see `chosen`).

  Raises:
    BadExample: ('empty question').
  """
  if not text.strip():
    raise BadExample('empty question', f'question {number}')
  entry = {'id': number, 'question': text.strip(), 'answer': '', 'answers': answers}
  entry.update((key, value) for key, value in more.items() if value is not None)
  if not entry['answer'] and (said := [answer for answer in answers if answer.strip()]):
    entry['answer'] = max(said, key=said.count)  # The first of equals.
  return entry


def chosen(number: str, text: str, choices: Sequence[str], index: int | None, **more: Any) -> dict:
  """An entry of 'questions' with choices, whose answer is the letter of choice `index`; '' where it is None (hidden).

  Raises:
    BadExample: ('empty question'), ('malformed record') no choices, over 26, or no such index.
  """
  if not 0 < len(choices) <= 26 or not (index is None or 0 <= index < len(choices)):
    raise BadExample('malformed record', f'question {number}: choice {index} of {len(choices)}')
  letter = [] if index is None else [string.ascii_uppercase[index]]
  return question(number, text, letter, choices=list(choices), **more)


_NEEDED = object()


def field(record: Any, key: str, kind: type | tuple[type, ...], default: Any = _NEEDED) -> Any:
  """record[key], or the default where it is missing or null. Raises BadExample ('malformed record') when of another kind."""
  if not isinstance(record, dict):
    raise BadExample('malformed record', f'{record!r:.80} is not an object')
  value = record.get(key)
  if value is None and default is not _NEEDED:
    return default
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    raise BadExample('malformed record', f'{key!r} is {value!r:.80} in {record!r:.200}')
  return value


def name_of(record: Any, key: str) -> str:
  """An id, which files hold as a number or a text, as text. Raises BadExample ('malformed record')."""
  value = str(field(record, key, (int, str)))
  if not value:
    raise BadExample('malformed record', f'{key!r} is empty in {record!r:.200}')
  return value


def index_of(record: Any, key: str) -> int | None:
  """A number of a choice, from 0, None where it is not told. Raises BadExample ('malformed record')."""
  value = field(record, key, (int, str), None)
  try:
    return None if value is None or value == '' else int(value)
  except ValueError as error:
    raise BadExample('malformed record', f'{key!r} is {value!r:.80}') from error


def texts(record: Any, key: str) -> list[str]:
  """A list of texts, [] where it is missing; annotators' answers are also objects with 'answer', and single texts.

  The strings are shared, as the same answers occur millions of times. Raises BadExample ('malformed record').
  """
  values = field(record, key, (list, str, int, float), [])
  return [sys.intern(value if isinstance(value, str) else _text(value, key))
          for value in (values if isinstance(values, list) else [values])]


def _text(value: Any, key: str) -> str:
  said = field(value, 'answer', (str, int, float)) if isinstance(value, dict) else value
  if isinstance(said, bool) or not isinstance(said, (str, int, float)):
    raise BadExample('malformed record', f'{key!r} holds {value!r:.80}')
  return str(said)


def listed(name: str, path: Path, key: str, hook: Callable[[dict], Any] | None = None) -> list:
  """The list under `key` of a JSON file. Raises SphinxError as read_json does, or when there is none."""
  records = read_json(name, path, dict, hook).get(key)
  if not isinstance(records, list):
    raise errors.make(f"source '{name}'", f"no list '{key}' in {str(path)!r}", 'the official file', 'download it again')
  return records


def folder(root: Path, images: str, *usual: str) -> Path:
  """Where pictures are: in the setting `images` (relative to root) if it is given, else in the first of the usual folders
  that is there, else in the first of them, and are counted as missing one by one."""
  if images:
    return root / images
  return next((root / place for place in usual if (root / place).is_dir()), root / usual[0])


def coco_folder(root: Path, images: str, name: str) -> Path:
  """COCO's folder `name` of pictures: in root, root/images, root/coco or root/../coco, or in root/{images}."""
  return folder(root, images and f'{images}/{name}', *(f'{place}{name}' for place in ('', 'images/', 'coco/', '../coco/')))
