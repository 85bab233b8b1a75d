"""What the families of questions share: answers, letters of choices, and items by picture."""

import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import family as base
from sphinx_jax.datasets.files import without_collection


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
      rows = _unique(self._rows(Progress(records, what=f'{name}: records')))
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
    return base.Item(
      first['id'], self._image(picture), self._annotation([entry for _, entry in rows])
    )

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
    yield row if len(versions) == 1 else (picture, entry | {'id': f'{entry["id"]}#{len(versions)}'})


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
