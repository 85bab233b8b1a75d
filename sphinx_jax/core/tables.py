"""Explicit tables `name -> "module:attribute"`, imported only when a name is looked up."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from sphinx_jax.core import errors


class Table(Mapping):
  """A read-only table of lazily imported things; a new encoder, dataset or task is one line in one of these.

  Args:
    kind: what the table holds, for the error message ("encoder", "task", ...).
    places: name -> "package.module:attribute".

  Raises:
    SphinxError: on looking up an unknown name; lists the choices and the nearest match.
  """

  def __init__(self, kind: str, places: dict[str, str]):
    self._kind = kind
    self._places = dict(places)

  def __getitem__(self, name: str) -> Any:
    if name not in self._places:
      raise errors.unknown(self._kind, name, self._places)
    module, _, attribute = self._places[name].partition(':')
    return getattr(importlib.import_module(module), attribute)

  def __contains__(self, name: object) -> bool:
    return name in self._places  # Mapping's own would import the module and catch KeyError.

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)
