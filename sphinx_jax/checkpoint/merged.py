"""Checkpoints with adapters merged into them, as arrays that are computed while they are read."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from sphinx_jax.checkpoint import adapter_runs, store, stream
from sphinx_jax.checkpoint.factors import Factors, HeldArray, MergedArray
from sphinx_jax.checkpoint.foreign import adapters as peft, hub, native_adapters
from sphinx_jax.models import adapters


class Opened(NamedTuple):
  """A checkpoint, or BASE+ADAPTER.

  Attributes:
    meta: of the checkpoint.
    source: what a mix records of it.
    arrays: path -> array, not read yet.
  """

  meta: dict[str, Any]
  source: dict[str, Any]
  arrays: dict[str, stream.Array]


def split(place: store.Path) -> tuple[str, str | None]:
  """Splits 'BASE+ADAPTER' into a checkpoint and an adapter; a checkpoint is never split.

  The adapter is a run's, or a folder of PEFT.
  """
  text = os.fspath(place)
  if '+' in text and not store.is_checkpoint(text):
    for i, character in enumerate(text):
      base, adapter = text[:i], text[i + 1 :]
      if character == '+' and store.is_checkpoint(base) and _is_adapter(adapter):
        return base, adapter
  return text, None


def _is_adapter(place: str) -> bool:
  return store.is_checkpoint(place) or peft.is_adapter(place)


def check_whole(place: store.Path, who: str) -> None:
  """Checks that a place is one checkpoint with all weights, or none.

  Args:
    place: a checkpoint, or BASE+ADAPTER.
    who: what it is, for the message.

  Raises:
    SphinxError: it has or is an adapter.
  """
  base, adapter = split(place)
  if adapter is not None:
    raise adapter_runs.not_merged(f"{who} '{place}'", 'an adapter beside its weights')
  adapter_runs.check_whole(base, who)


def open_checkpoint(place: store.Path) -> Opened:
  """Opens a checkpoint, or BASE+ADAPTER with the adapter merged; no weight is read.

  Raises:
    SphinxError: a place is no checkpoint or holds adapters alone, or the adapter was trained with
      other weights.
  """
  base, adapter = split(place)
  adapter_runs.check_whole(base)
  meta, arrays = store.load_meta(base), stream.read(base, mapped=True)
  source = {
    'directory': str(store.absolute_path(base)),
    'step': meta['step'],
    'identity': store.identity(base),
  }
  if adapter is None:
    return Opened(meta, source, arrays)
  if store.is_checkpoint(adapter):
    adapter_runs.check_base(store.load_meta(adapter), adapter, base)
    source['adapter'] = str(store.absolute_path(adapter))
    source['adapter_identity'] = store.identity(adapter)
    merged = _merge_run(arrays, stream.read(adapter))
  else:
    source['adapter'] = str(hub.locate(adapter).absolute())
    source['adapter_identity'] = hub.identity(adapter)
    merged = merge(arrays, native_adapters.read(adapter, base))
  return Opened(meta, source, merged)


def _merge_run(
  base: Mapping[str, stream.Array], adapter: Mapping[str, stream.Array]
) -> dict[str, stream.Array]:
  """The arrays of a checkpoint with those of a run's adapters in them."""
  merged = {**base, **{path: adapter[path] for path in adapter if path in base}}
  for path in adapter:
    layer, _, name = path.rpartition('/')
    if name == adapters.A:
      kernel = f'{layer}/{adapters.KERNEL}'
      leaves = (adapter[f'{layer}/{leaf}'].read(()) for leaf in adapters.LEAVES)
      merged[kernel] = MergedArray(merged[kernel], Factors(*leaves))
  return merged


def merge(
  base: Mapping[str, stream.Array], adapter: native_adapters.Adapter
) -> dict[str, stream.Array]:
  """The arrays of a checkpoint with an adapter of PEFT in them, in the checkpoint's dtypes."""
  merged = dict(base)
  for path, value in adapter.replaced.items():
    merged[path] = HeldArray(value.astype(base[path].dtype, copy=False), base[path].layers)
  for path, factors in adapter.factors.items():
    merged[path] = MergedArray(merged[path], factors)
  return merged
