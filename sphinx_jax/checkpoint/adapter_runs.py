"""Checkpoints that hold adapters alone, of runs whose frozen weights are another checkpoint.

This file is the only writer and reader of the key 'adapter_of' of a checkpoint's meta. A checkpoint
that was quantized has another one as its parent: an adapter of either fits both.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import errors

_BASE = 'adapter_of'


def base(directory: store.Path) -> dict[str, Any]:
  """The entry of the meta of a run that begins with a checkpoint.

  Args:
    directory: a run's directory or one step's.
  """
  path = os.fspath(store.absolute_path(directory))
  identity, *origin = _identities(path)
  return {_BASE: {'path': path, 'identity': identity, **({'origin': origin} if origin else {})}}


def _identities(directory: store.Path) -> list[str]:
  """The identity of a checkpoint and, if it was quantized, that of the one it was made of."""
  meta = store.load_meta(directory)
  parents = meta.get('parents', ()) if Bundle.from_meta(meta, directory).weights else ()
  whole = [parent['identity'] for parent in parents if 'adapter' not in parent]
  return [store.identity_of(meta), *whole]


def entry(meta: Mapping[str, Any]) -> dict[str, Any]:
  """The entry of another adapter on the base of the one with this meta."""
  return {_BASE: meta[_BASE]}


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


def check_whole(directory: store.Path, who: str = 'checkpoint', part: bool = False) -> None:
  """Checks that a checkpoint has all weights.

  Args:
    directory: a run's directory or one step's.
    who: what the checkpoint is, for the message.
    part: whether one of a part of the parameters will do.

  Raises:
    SphinxError: it holds adapters or a part alone.
  """
  if store.is_checkpoint(directory):
    check_whole_meta(store.load_meta(directory), directory, who, part)


def check_whole_meta(
  meta: Mapping[str, Any], directory: store.Path, who: str = 'checkpoint', part: bool = False
) -> None:
  """As `check_whole`, of a checkpoint with this meta."""
  if meta.get('part') and not part:
    raise errors.make(
      f"{who} '{directory}'",
      f'the {meta["part"]} alone',
      'all weights',
      'train a model that begins with them (init_from)',
    )
  if _BASE in meta:
    raise not_merged(f"{who} '{directory}'", 'a run that holds adapters alone')


def not_merged(who: str, got: str) -> errors.SphinxError:
  """Returns the error for an adapter where all weights are needed in one checkpoint."""
  return errors.make(
    who,
    got,
    'all weights',
    'merge it first: python -m sphinx_jax.mix_weights --inputs=BASE+ADAPTER --output=DIR',
  )


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
  if not store.is_checkpoint(weights):
    return
  known = {meta[_BASE]['identity'], *meta[_BASE].get('origin', ())}
  if known.isdisjoint(_identities(weights)):
    raise errors.make(
      f"adapter '{directory}' on '{weights}'",
      'other weights than those that it was trained with',
      f"those of '{meta[_BASE]['path']}'",
      'give these as the checkpoint',
    )


def check_same_base(metas: Sequence[Mapping[str, Any]], directories: Sequence[store.Path]) -> None:
  """Checks that checkpoints hold adapters of the same weights.

  Args:
    metas: of the checkpoints.
    directories: of the checkpoints, for the message.

  Raises:
    SphinxError: one holds all weights, or was trained with others than the first.
  """
  for meta, directory in zip(metas, directories):
    if _BASE not in meta:
      raise errors.make(
        f"mix_weights, input '{directory}'",
        'a checkpoint with all weights',
        'one that holds adapters alone',
        'leave --rank out, or give the run that trained the adapters',
      )
    if meta[_BASE]['identity'] != metas[0][_BASE]['identity']:
      raise errors.make(
        f"mix_weights, input '{directory}'",
        f"an adapter of '{meta[_BASE]['path']}'",
        f"one of the weights of '{directories[0]}', those in '{metas[0][_BASE]['path']}'",
        'mix adapters that were trained with the same weights, or merge each one: BASE+ADAPTER',
      )
