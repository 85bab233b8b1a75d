"""Checkpoints with adapters merged into them, as arrays that are computed while they are read.

Kernels in few bits are widened: to bfloat16, and to float32 before an adapter is added.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.checkpoint import adapter_runs, grown, store, stream, widened
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.checkpoint.factors import Factors, MergedArray
from sphinx_jax.checkpoint.foreign import adapters as peft, hub, native_adapters
from sphinx_jax.core import errors
from sphinx_jax.models import adapters


class Opened(NamedTuple):
  """A checkpoint, or BASE+ADAPTER.

  Attributes:
    bundle: of the checkpoint; with an adapter that adds tokens, it has these.
    source: what a mix records of it.
    arrays: path -> array, not read yet.
  """

  bundle: Bundle
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


def check_whole(place: store.Path, who: str, part: bool = False) -> None:
  """Checks that a place is one checkpoint with all weights, or none.

  Args:
    place: a checkpoint, or BASE+ADAPTER.
    who: what it is, for the message.
    part: whether a checkpoint of a part of the parameters will do.

  Raises:
    SphinxError: it has or is an adapter, or a part.
  """
  base, adapter = split(place)
  if adapter is not None:
    raise adapter_runs.not_merged(f"{who} '{place}'", 'an adapter beside its weights')
  folder, adapter = hub.split(place)
  if adapter is not None and hub.locate(folder).exists() and not store.is_checkpoint(folder):
    raise errors.make(
      f"{who} '{place}'",
      'a folder of another library, with an adapter',
      'a checkpoint',
      'import it first: python -m sphinx_jax.convert --source=BASE+ADAPTER --output=DIR',
    )
  adapter_runs.check_whole(base, who, part)


def open_checkpoint(place: store.Path) -> Opened:
  """Opens a checkpoint, or BASE+ADAPTER with the adapter merged; no weight is read.

  Raises:
    SphinxError: a place is no checkpoint or holds adapters alone, or the adapter was trained with
      other weights.
  """
  base, adapter = split(place)
  meta = store.load_meta(base)
  adapter_runs.check_whole_meta(meta, base)
  bundle, held = Bundle.from_meta(meta, base), stream.read(base, mapped=True)
  arrays = widened.widen(held, bundle.forms)
  source = source_of(base, meta)
  if adapter is None:
    return Opened(bundle, source, arrays)
  exact = widened.kernels(held, bundle.forms, np.float32)
  if not store.is_checkpoint(adapter):
    source['adapter'] = str(hub.locate(adapter).absolute())
    source['adapter_identity'] = hub.identity(adapter)
    return Opened(bundle, source, merge(arrays, native_adapters.read(adapter, base), exact))
  meta_of_adapter = store.load_meta(adapter)
  adapter_runs.check_base(meta_of_adapter, adapter, base)
  source['adapter'] = str(store.absolute_path(adapter))
  source['adapter_identity'] = store.identity_of(meta_of_adapter)
  trained, own = stream.read(adapter), Bundle.from_meta(meta_of_adapter, adapter)
  if own.tokenizer != bundle.tokenizer:
    bundle = _with_tokens(bundle, own)
    arrays, trained = grown.join(arrays, trained, own.config.model.llm.vocab)
  return Opened(bundle, source, _merge_run(arrays, exact, trained))


def source_of(directory: store.Path, meta: Mapping[str, Any]) -> dict[str, Any]:
  """What a mix records of a checkpoint with this meta."""
  return {
    'directory': str(store.absolute_path(directory)),
    'step': meta['step'],
    'identity': store.identity_of(meta),
  }


def _with_tokens(base: Bundle, adapter: Bundle) -> Bundle:
  """The bundle of a base, with the tokens that its adapter adds."""
  config = base.config.copy_and_resolve_references()
  with config.unlocked():
    config.model.llm.vocab = adapter.config.model.llm.vocab
  return dataclasses.replace(
    base, config=config, tokenizer=adapter.tokenizer, added_tokens=adapter.added_tokens
  )


def _merge_run(
  base: Mapping[str, stream.Array],
  exact: Mapping[str, stream.Array],
  adapter: Mapping[str, stream.Array],
) -> dict[str, stream.Array]:
  """The arrays of a checkpoint with those of a run's adapters in them.

  Args:
    base: the arrays of the checkpoint, in the dtypes of the result.
    exact: those of its kernels that are in few bits, in float32.
    adapter: the arrays of the run.
  """
  merged = {**base, **{path: adapter[path] for path in adapter if path in base}}
  for path in adapter:
    layer, _, name = path.rpartition('/')
    if name == adapters.A:
      kernel = f'{layer}/{adapters.KERNEL}'
      leaves = (adapter[f'{layer}/{leaf}'].read(()) for leaf in adapters.LEAVES)
      matrix = exact.get(kernel, base[kernel])
      merged[kernel] = MergedArray(matrix, Factors(*leaves), base[kernel].dtype)
  return merged


def merge(
  base: Mapping[str, stream.Array],
  adapter: native_adapters.Adapter,
  exact: Mapping[str, stream.Array],
) -> dict[str, stream.Array]:
  """The arrays of a checkpoint with an adapter of PEFT in them, in the checkpoint's dtypes.

  Args:
    base: the arrays of the checkpoint.
    adapter: the adapter.
    exact: those of its kernels that are in few bits, in float32.
  """
  replaced = {
    path: stream.HeldArray(value.astype(base[path].dtype, copy=False), base[path].layers)
    for path, value in adapter.replaced.items()
  }
  merged, matrices = {**base, **replaced}, {**base, **exact, **replaced}
  for path, factors in adapter.factors.items():
    merged[path] = MergedArray(matrices[path], factors, base[path].dtype)
  return merged
