"""Checked access to the fields of one record. A field of the wrong type makes a BadExample."""

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from sphinx_jax.data.record import BadExample

_REQUIRED = object()


def field(record: Any, key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
  """Returns record[key], or the default if it is missing or null.

  Raises:
    BadExample: 'malformed record' if the value has another type.
  """
  if not isinstance(record, dict):
    raise BadExample('malformed record', f'{record!r:.80} is not an object')
  value = record.get(key)
  if value is None and default is not _REQUIRED:
    return default
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    raise BadExample('malformed record', f'{key!r} is {value!r:.80} in {record!r:.200}')
  return value


def id_field(record: Any, key: str) -> str:
  """Returns an id as text. Files store ids as numbers or as text.

  Raises:
    BadExample: 'malformed record'.
  """
  value = str(field(record, key, (int, str)))
  if not value:
    raise BadExample('malformed record', f'{key!r} is empty in {record!r:.200}')
  return value


def index_field(record: Any, key: str) -> int | None:
  """Returns the index of a choice, from 0, or None if it is hidden.

  Raises:
    BadExample: 'malformed record'.
  """
  value = field(record, key, (int, str), None)
  try:
    return None if value is None or value == '' else int(value)
  except ValueError as error:
    raise BadExample('malformed record', f'{key!r} is {value!r:.80}') from error


def texts_field(record: Any, key: str) -> list[str]:
  """Returns a list of texts, [] if it is missing.

  Annotators' answers are also stored as objects with 'answer', and as a single text. Equal strings
  are shared, because the same answers occur millions of times.

  Raises:
    BadExample: 'malformed record'.
  """
  values = field(record, key, (list, str, int, float), [])
  if not isinstance(values, list):
    values = [values]
  return [
    sys.intern(value if isinstance(value, str) else _answer_text(value, key)) for value in values
  ]


def _answer_text(value: Any, key: str) -> str:
  text = field(value, 'answer', (str, int, float)) if isinstance(value, dict) else value
  if isinstance(text, bool) or not isinstance(text, (str, int, float)):
    raise BadExample('malformed record', f'{key!r} holds {value!r:.80}')
  return str(text)


def number(value: Any, name: str) -> float:
  """Returns a JSON number as a float. Raises BadExample ('malformed record')."""
  try:
    if isinstance(value, int | float) and not isinstance(value, bool):
      return float(value)
  except OverflowError:
    pass
  raise BadExample('malformed record', f'{name}: {value!r:.80} instead of a number')


def unique_ids(ids: Iterable[str]) -> list[str]:
  """Returns the ids, with '#2', '#3' ... appended to those that occurred before."""
  counts: Counter[str] = Counter()
  result = []
  for name in ids:
    counts[name] += 1
    result.append(name if counts[name] == 1 else f'{name}#{counts[name]}')
  return result


def group_by(rows: Iterable[Any], key: Callable[[Any], Hashable]) -> list[list[Any]]:
  """Returns the rows in groups of equal key, in the order of each group's first row."""
  groups: dict[Hashable, list[Any]] = {}
  for row in rows:
    groups.setdefault(key(row), []).append(row)
  return list(groups.values())


def chunks(groups: Iterable[Sequence[Any]], limit: int) -> Iterator[Sequence[Any]]:
  """Cuts each group into chunks of at most `limit`."""
  for group in groups:
    for begin in range(0, len(group), limit):
      yield group[begin : begin + limit]
