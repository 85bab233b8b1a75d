"""Model cards: README.md of a folder, as the Hugging Face hub reads it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import hub
from sphinx_jax.core import config as config_lib, errors

NAME = 'README.md'


def text(
  title: str,
  licence: str | None,
  base_models: Sequence[str],
  body: str,
  library: str = 'transformers',
) -> str:
  """Returns a model card: YAML that the hub reads, and markdown.

  Args:
    title: heading.
    licence: of the weights, as the hub names it ('apache-2.0'); None: not known.
    base_models: names of the models that the weights were made from.
    body: markdown below the heading.
    library: that loads the folder.
  """
  from huggingface_hub import ModelCardData  # Imported here, as it takes half a second.

  data = ModelCardData(
    license=licence,
    base_model=list(base_models) or None,
    library_name=library,
    tags=['sphinx_jax'],
  )
  return f'---\n{data.to_yaml()}\n---\n\n# {title}\n\n{body.strip()}\n'


def licence(folder: pathlib.Path) -> str | None:
  """Returns the licence that the card of a folder names, or None."""
  from huggingface_hub.repocard import metadata_load

  if not (folder / NAME).is_file():
    return None
  try:
    found = (metadata_load(folder / NAME) or {}).get('license')
  except (ValueError, yaml.YAMLError):  # Text of some other kind.
    return None
  return found if isinstance(found, str) else None


def adapter(place: str | pathlib.Path | None) -> dict[str, str | None]:
  """Returns name -> licence of an adapter of PEFT; nothing of one of a run, or of None.

  Args:
    place: folder of the adapter, or its name in the local hub cache.
  """
  if place is None or store.is_checkpoint(place):
    return {}
  folder = hub.locate(place)
  return {hub.name_of(folder): licence(folder)}


def releases(meta: Mapping[str, Any]) -> dict[str, str | None]:
  """Returns name -> licence of the released weights and adapters that a checkpoint began with.

  Checkpoints that it was trained or mixed from are followed as long as they are in their place.

  Args:
    meta: of the checkpoint.
  """
  origin = meta.get('foreign', {})
  if 'name' in origin:
    return {origin['name']: origin['licence'], **origin.get('adapters', {})}
  entries = (*meta.get('parents', ()), *meta.get('base', ()))
  parents = [entry['directory'] for entry in entries]
  found: dict[str, str | None] = {}
  for entry in entries:
    found |= adapter(entry.get('adapter'))
  for parent in (*parents, config_lib.from_json(meta['config']).get('init_from')):
    try:
      found |= releases(store.load_meta(parent)) if parent else {}
    except errors.SphinxError:  # 'scratch', or gone.
      continue
  return found
