"""Checked access to the fields of one record. A field of the wrong type makes a BadExample."""

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from sphinx_jax.data.record import BadExample

_REQUIRED = object()
_WHOLE = re.compile(r'(-?(?:0|[1-9]\d*))(\.0+)?', re.ASCII)


def as_text(value: Any) -> str | None:
  """Returns a text, or a finite number as its text. Null, booleans, NaN and infinity are no text.

  pandas writes NaN for an empty cell.
  """
  if isinstance(value, str):
    return value
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return str(value) if isinstance(value, int) or math.isfinite(value) else None


def as_id(value: Any) -> int | str | None:
  """Returns the id that a JSON value stands for, None if it is no id.

  1, 1.0, '1' and '1.0' are one id, because pandas writes ids as floats. '01' is another one.
  """
  if type(value) is int:
    return value
  text = as_text(value)
  whole = _WHOLE.fullmatch(text) if text else None
  if whole:
    return int(whole[1])
  return value if isinstance(value, str) and value else None


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
  """Returns an id as text. Files store ids as numbers or as text, see `as_id`.

  Raises:
    BadExample: 'malformed record'.
  """
  value = as_id(field(record, key, (int, float, str)))
  if value is None:
    raise BadExample('malformed record', f'{key!r} is {record[key]!r:.80} in {record!r:.200}')
  return str(value)


def number_field(record: Any, key: str) -> int:
  """Returns an id that is a whole number: 9, 9.0, '9' or '009'.

  Raises:
    BadExample: 'malformed record'.
  """
  text = id_field(record, key)
  if not (text.isascii() and text.isdecimal()):
    raise BadExample('malformed record', f'{key!r} is {text!r:.80}, expected a whole number')
  return int(text)


def index_field(record: Any, key: str) -> int | None:
  """Returns the index of a choice, from 0, or None if it is hidden.

  Raises:
    BadExample: 'malformed record'.
  """
  value = field(record, key, (int, float, str), None)
  if value is None or value == '':
    return None
  try:
    return int(as_id(value))
  except (TypeError, ValueError) as error:
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
  text = as_text(value.get('answer') if isinstance(value, dict) else value)
  if text is None:
    raise BadExample('malformed record', f'{key!r} holds {value!r:.80}')
  return text


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
