"""Checkpoints that hold adapters alone, of runs whose frozen weights are another checkpoint.

`base` is the only writer and reader of the key 'adapter_of' of a checkpoint's meta.
"""

import os
from collections.abc import Mapping
from typing import Any

from sphinx_jax.checkpoint import store
from sphinx_jax.core import errors

_BASE = 'adapter_of'


def base(directory: store.Path) -> dict[str, Any]:
  """The entry of the meta of a run that begins with a checkpoint.

  Args:
    directory: a run's directory or one step's.
  """
  path = os.fspath(store.absolute_path(directory))
  return {_BASE: {'path': path, 'identity': store.identity(path)}}


def is_adapter(directory: store.Path) -> bool:
  """Whether a directory is a checkpoint that holds adapters alone."""
  return store.is_checkpoint(directory) and _BASE in store.load_meta(directory)


def base_of(directory: store.Path) -> str:
  """The path of the weights under an adapter.

  Raises:
    SphinxError: they are not where they were.
  """
  path = store.load_meta(directory)[_BASE]['path']
  if not store.is_checkpoint(path):
    raise errors.make(
      f"adapter '{directory}'",
      f"no checkpoint in '{path}', with whose weights it was trained",
      'those weights',
      'give them and the adapter: --checkpoint=BASE --adapter=DIR',
    )
  return path


def check_base(meta: Mapping[str, Any], directory: store.Path, weights: store.Path) -> None:
  """Checks that an adapter was trained with these weights.

  Files of other projects cannot be compared: a conversion of them has another identity.

  Args:
    meta: of the adapter.
    directory: of the adapter, for the message.
    weights: a checkpoint or another folder of weights.

  Raises:
    SphinxError: they are another checkpoint, or the directory holds no adapter.
  """
  if _BASE not in meta:
    raise errors.make(
      f"adapter '{directory}'",
      'a checkpoint with all weights',
      'one that holds adapters alone',
      'load it without an adapter',
    )
  if store.is_checkpoint(weights) and store.identity(weights) != meta[_BASE]['identity']:
    raise errors.make(
      f"adapter '{directory}' on '{weights}'",
      'other weights than those that it was trained with',
      f"those of '{meta[_BASE]['path']}'",
      'give these as the checkpoint',
    )
