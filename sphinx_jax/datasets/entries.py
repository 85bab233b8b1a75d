"""The keys of a mixture entry, checked when its source is opened."""

from collections.abc import Collection, Mapping
from typing import Any

from sphinx_jax.core import errors

# Keys of every entry. Only the sources that ask several questions at once use max_turns.
COMMON = ('source', 'weight', 'cap', 'max_turns')
_TEXTS = ('path', 'root', 'split', 'task', 'type', 'too_long', 'domain')


def check(
  entry: Mapping[str, Any], name: str, required: Collection[str], optional: Collection[str]
) -> None:
  """Checks the keys of an entry, and the types of those that are texts.

  Args:
    entry: the mixture entry.
    name: name of its source.
    required: keys besides COMMON that it must have.
    optional: keys besides COMMON that it may have. None stands for one that is left out.

  Raises:
    SphinxError: a key is missing or unknown, or a text is not one.
  """
  known = [*required, *optional, *COMMON]
  unknown = [key for key in entry if key not in known]
  if unknown:
    who = f"setting of source '{name}'"
    messages = (str(errors.unknown(who, key, known)) for key in unknown)
    raise errors.SphinxError('; '.join(messages))
  for key in required:
    if not entry.get(key):
      raise errors.make(
        f"source '{name}'", f"an entry without '{key}'", f"'{key}', which it needs", f'add {key}'
      )
  for key in _TEXTS:
    if not isinstance(entry.get(key), str | None):
      raise errors.make(f"source '{name}'", f'{key} {entry[key]!r}', 'a text', f'correct {key}')
