"""Base class of the families of questions about images, and their annotation entries."""

import abc
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core.progress import Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import chunks, group_by
from sphinx_jax.datasets.files import gc_paused


class Questions(Family):
  """A family whose records are questions about images.

  An item is an image with at most max_turns of its questions, and every question is in one item.
  Questions without an answer are in items of their own, so that an unusable question does not take
  usable ones with it. A record that cannot be read becomes an item that raises its BadExample. If
  an id occurs again with the same question, the question is dropped. With another question it is
  kept and gets '#2'.

  A subclass calls `_set_records` in `_open`, and implements `_read` and `_image`.
  """

  def __len__(self) -> int:
    return len(self._groups) + len(self._bad)

  def item(self, index: int) -> Item:
    """Raises BadExample ('malformed record', 'empty question', 'not json')."""
    if index >= len(self._groups):
      bad = self._bad[index - len(self._groups)]
      raise BadExample(bad.reason, bad.message)
    rows = self._groups[index]
    image, first_entry = rows[0]
    annotation = self._annotation([entry for _, entry in rows])
    encoded = self._image(image)
    return Item(first_entry['id'], () if encoded is None else (encoded,), annotation)

  def _set_records(self, records: Iterable[Any], max_turns: int | None = None) -> None:
    """Reads all records. One may already be a BadExample.

    Args:
      records: arguments of `_read`.
      max_turns: the largest number of questions in an item, by default the family's.
    """
    self._bad: list[BadExample] = []
    with gc_paused():
      rows = _number_repeated(self._rows(Progress(records, what=f'{self.NAME}: records')))
      groups = group_by(rows, lambda row: (row[0], row[1].get('answer') != ''))
      self._groups = list(chunks(groups, max_turns or self.max_turns))

  @abc.abstractmethod
  def _read(self, record: Any) -> tuple[Any, dict[str, Any]]:
    """Returns (image key, entry of `question`) of a record. Raises BadExample."""

  @abc.abstractmethod
  def _image(self, image: Any) -> Path | bytes | None:
    """Returns the file or the bytes of an image key."""

  def _annotation(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {'questions': entries}

  def _rows(self, records: Iterable[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for record in records:
      try:
        if isinstance(record, BadExample):
          raise record
        yield self._read(record)
      except BadExample as error:
        self._bad.append(error)


def _number_repeated(
  rows: Iterable[tuple[Any, dict[str, Any]]],
) -> Iterator[tuple[Any, dict[str, Any]]]:
  """Drops repeated rows, and appends '#2', '#3' ... to the ids of different rows with one id."""
  rows_of_id: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
  for row in rows:
    image, entry = row
    versions = rows_of_id.setdefault(entry['id'], [])
    if row in versions:
      continue
    versions.append(row)
    if len(versions) > 1:
      row = image, entry | {'id': f'{entry["id"]}#{len(versions)}'}
    yield row


def question(question_id: str, text: str, answers: Sequence[str], **more: Any) -> dict[str, Any]:
  """Builds an entry of 'questions' (tasks/questions.py).

  The answer to train is the most common one of the annotators, the first of equally common ones.

  Args:
    question_id: the id.
    text: the question.
    answers: of all annotators. [] if they are hidden; the answer to train is then ''.
    more: 'answer' if the files name the one to train; 'context', 'instruction', 'choices' (see
      `choice_question`). None values are left out.

  Raises:
    BadExample: 'empty question'.
  """
  if not text.strip():
    raise BadExample('empty question', f'question {question_id}')
  entry = {'id': question_id, 'question': text.strip(), 'answer': '', 'answers': answers}
  entry.update((key, value) for key, value in more.items() if value is not None)
  nonempty = [answer for answer in answers if answer.strip()]
  if not entry['answer'] and nonempty:
    entry['answer'] = max(nonempty, key=nonempty.count)  # max returns the first of equals.
  return entry


def choice_question(
  question_id: str, text: str, choices: Sequence[str], index: int | None, **more: Any
) -> dict[str, Any]:
  """Builds an entry of 'questions' whose answer is the letter of choice `index`.

  Args:
    question_id: the id.
    text: the question.
    choices: 1 to 26 texts.
    index: of the right choice, from 0. None if it is hidden; the answer is then ''.
    more: as in `question`.

  Raises:
    BadExample: 'empty question'; 'malformed record' for no choices, over 26, or no such index.
  """
  if not 0 < len(choices) <= 26 or not (index is None or 0 <= index < len(choices)):
    raise BadExample(
      'malformed record', f'question {question_id}: choice {index} of {len(choices)}'
    )
  answers = [] if index is None else [string.ascii_uppercase[index]]
  return question(question_id, text, answers, choices=list(choices), **more)
