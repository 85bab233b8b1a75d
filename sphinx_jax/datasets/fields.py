"""Reading one record of a dataset's files with care: what is not as it should be is a BadExample, and is counted."""

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sphinx_jax.data.record import BadExample

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
  return [
    sys.intern(value if isinstance(value, str) else _text(value, key))
    for value in (values if isinstance(values, list) else [values])
  ]


def _text(value: Any, key: str) -> str:
  said = field(value, 'answer', (str, int, float)) if isinstance(value, dict) else value
  if isinstance(said, bool) or not isinstance(said, (str, int, float)):
    raise BadExample('malformed record', f'{key!r} holds {value!r:.80}')
  return str(said)


def number(value: Any, what: str) -> float:
  """A number of JSON as a float. Raises BadExample ('malformed record')."""
  try:
    if isinstance(value, int | float) and not isinstance(value, bool):
      return float(value)
  except OverflowError:
    pass
  raise BadExample('malformed record', f'{what}: {value!r:.80} instead of a number')


def unique(ids: Iterable[str]) -> list[str]:
  """The ids with '#2', '#3' ... on those that came before."""
  seen: Counter = Counter()
  result = []
  for name in ids:
    seen[name] += 1
    result.append(name if seen[name] == 1 else f'{name}#{seen[name]}')
  return result
