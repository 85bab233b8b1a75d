"""Kinds of config values, and the check of a config against a table of them.

A table is nested like the config. A name has a `Setting` or the table of a section. '*' stands for
every name that the table does not have:

    TABLE = {'steps': integer('updates'), 'optimizer': {'lr': number('peak learning rate')}}
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sphinx_jax.core import errors

LARGEST_INT = 2**31 - 1  # Sizes and counters are int32 on the device.
LARGEST = 1e38  # Numbers are float32 on the device.
_SHOWN = 100  # Characters of a wrong value in a message.


class Setting(NamedTuple):
  """A setting of a config.

  Attributes:
    meaning: a noun phrase, with the reason of the range if it is not obvious.
    expected: the values it takes, in words.
    accepts: whether a value is one of them.
    choices: the values, if they are names.
    required: whether the config must have it.
    nullable: whether it may be None.
  """

  meaning: str
  expected: str
  accepts: Callable[[Any], bool]
  choices: tuple[str, ...] = ()
  required: bool = True
  nullable: bool = False


Table = Mapping[str, 'Setting | Table']


class Sections(dict):
  """A table of sections that may be absent or None."""


class OptionalSection(dict):
  """The table of a section that may be absent."""


class Alternatives(dict):
  """Tables by name. The config's setting `name` chooses one of them; without it, the first."""

  def choose(self, config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The table of a config. Raises SphinxError for an unknown name."""
    name = config.get('name', next(iter(self)))
    if name not in self:
      raise errors.unknown(_join(path, 'name'), name, self)
    return self[name]


def integer(
  meaning: str, low: int = 1, high: int = LARGEST_INT, without: tuple[int, ...] = ()
) -> Setting:
  """Returns a setting that takes integers from `low` to `high`, but not those in `without`."""

  def accepts(value: Any) -> bool:
    return type(value) is int and low <= value <= high and value not in without

  excluded = f' other than {", ".join(map(str, without))}' if without else ''
  return Setting(meaning, f'an integer{excluded} in [{low}, {high}]', accepts)


def number(
  meaning: str, low: float = 0, high: float = LARGEST, without: tuple[float, ...] = ()
) -> Setting:
  """Returns a setting that takes finite numbers from `low` to `high`.

  Args:
    meaning: see `Setting`.
    low: least number.
    high: largest number.
    without: the ends that are left out.
  """

  def accepts(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and low <= value <= high and value not in without

  left, right = '(' if low in without else '[', ')' if high in without else ']'
  return Setting(meaning, f'a number in {left}{low:g}, {high:g}{right}', accepts)


def positive(meaning: str) -> Setting:
  """Returns a setting that takes numbers above 0."""
  return number(meaning, without=(0,))


def share(meaning: str) -> Setting:
  """Returns a setting that takes numbers from 0 to 1."""
  return number(meaning, high=1)


def flag(meaning: str) -> Setting:
  """Returns a setting that is True or False."""
  return Setting(meaning, 'True or False', lambda value: isinstance(value, bool))


def text(meaning: str) -> Setting:
  """Returns a setting that takes texts."""
  return Setting(meaning, 'a text', lambda value: isinstance(value, str))


def anything(meaning: str) -> Setting:
  """Returns a setting that takes any value."""
  return Setting(meaning, 'a value', lambda value: True)


def choice(meaning: str, names: Iterable[str]) -> Setting:
  """Returns a setting that takes one of some names."""
  names = tuple(names)
  accepts = lambda value: isinstance(value, str) and value in names
  return Setting(meaning, f'one of {", ".join(names)}', accepts, names)


def pattern(meaning: str) -> Setting:
  """Returns a setting that takes regular expressions."""

  def accepts(value: Any) -> bool:
    try:
      return isinstance(value, str) and re.compile(value) is not None
    except re.error:
      return False

  return Setting(meaning, 'a regular expression', accepts)


def sequence(meaning: str, item: Setting, least: int = 1, most: int | None = None) -> Setting:
  """Returns a setting that takes tuples or lists of `least` to `most` values of one kind."""

  def accepts(value: Any) -> bool:
    return (
      isinstance(value, (tuple, list))
      and least <= len(value) <= (len(value) if most is None else most)
      and all(map(item.accepts, value))
    )

  count = f'{least}' if most == least else f'at least {least}'
  return Setting(meaning, f'a tuple of {count}, each {item.expected}', accepts)


def record(meaning: str, *items: Setting) -> Setting:
  """Returns a setting that takes tuples or lists with one value of each kind."""

  def accepts(value: Any) -> bool:
    return (
      isinstance(value, (tuple, list))
      and len(value) == len(items)
      and all(item.accepts(part) for item, part in zip(items, value))
    )

  return Setting(meaning, f'({", ".join(item.expected for item in items)})', accepts)


def by_name(meaning: str, item: Setting) -> Setting:
  """Returns a setting that takes dictionaries {name: value of one kind}."""

  def accepts(value: Any) -> bool:
    return (
      isinstance(value, dict)
      and all(isinstance(key, str) for key in value)
      and all(map(item.accepts, value.values()))
    )

  return Setting(meaning, f'{{name: {item.expected}}}', accepts)


def texts(meaning: str) -> Setting:
  """Returns a setting that takes a text, or a tuple or list of texts."""

  def accepts(value: Any) -> bool:
    items = value if isinstance(value, (tuple, list)) else [value]
    return all(isinstance(item, str) for item in items)

  return Setting(meaning, 'a text or a tuple of texts', accepts)


def optional(setting: Setting) -> Setting:
  """Returns the setting, which may be absent: the code that takes it has a default."""
  return setting._replace(required=False)


def optional_or_none(setting: Setting) -> Setting:
  """Returns the setting, which may be absent or None."""
  return nullable(optional(setting))


def nullable(setting: Setting) -> Setting:
  """Returns the setting, which may be None: none given."""
  return setting._replace(nullable=True)


def check(config: Any, table: Table, path: str = '') -> None:
  """Checks the names, types and ranges of a config.

  Args:
    config: a ConfigDict or a dictionary.
    table: see the module.
    path: dotted path of the config, for error messages.

  Raises:
    SphinxError: a setting is unknown, missing, or has another value than the table allows; the
      message has its path, and what the table knows of it.
  """
  config = config.to_dict() if isinstance(config, ConfigDict) else config
  if not isinstance(config, dict):
    raise errors.make(
      path or 'config',
      _describe(config),
      'a section with settings',
      f'its settings are {", ".join(table)}',
    )
  if isinstance(table, Alternatives):
    table = table.choose(config, path)
  for name in config:
    if name not in table and '*' not in table:
      raise errors.unknown(f'config, setting {_join(path, name)}', name, table)
  for name, row in table.items():
    if name not in config and name != '*' and not isinstance(table, Sections):
      if isinstance(row, OptionalSection):
        continue
      if not isinstance(row, Setting):
        raise errors.make(
          _join(path, name), 'nothing', f'a section with {", ".join(row)}', 'add it to the config'
        )
      if row.required:
        raise errors.make(_join(path, name), 'nothing', row.expected, f'add it: {row.meaning}')
  for name, value in config.items():
    row, where = table.get(name, table.get('*')), _join(path, name)
    if not isinstance(row, Setting):
      if value is not None or not isinstance(table, Sections):
        check(value, row, where)
    elif not (row.nullable and value is None) and not row.accepts(value):
      if row.choices and isinstance(value, str):
        raise errors.unknown(where, value, row.choices)
      expected = f'{row.expected} or None' if row.nullable else row.expected
      raise errors.make(where, _describe(value), expected, f'correct it: {row.meaning}')


def _join(path: str, name: Any) -> str:
  return f'{path}.{name}' if path else f'{name}'


def _describe(value: Any) -> str:
  """Returns a value as short text."""
  if isinstance(value, int) and abs(value) > 10**_SHOWN:
    return f'an integer of {value.bit_length()} bits'  # Python refuses to print a longer one.
  shown = repr(value)
  return shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}...'
