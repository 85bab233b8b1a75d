"""Explicit tables `name -> "module:attribute"`: the module is imported when a name is looked up."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from sphinx_jax.core import errors


class Table(Mapping):
  """A read-only table of lazily imported objects. A new encoder, dataset or task is one line.

  Looking up an unknown name raises a SphinxError with the choices and the nearest match.

  Args:
    kind: noun for the entries in error messages ("encoder", "task", ...).
    places: name -> "package.module:attribute".
  """

  def __init__(self, kind: str, places: dict[str, str]) -> None:
    self._kind = kind
    self._places = dict(places)

  def __getitem__(self, name: str) -> Any:
    if name not in self._places:
      raise errors.unknown(self._kind, name, self._places)
    module, _, attribute = self._places[name].partition(':')
    return getattr(importlib.import_module(module), attribute)

  def __contains__(self, name: object) -> bool:
    return name in self._places  # Mapping.__contains__ would import the module.

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)
