"""Checkpoints with adapters merged into them, as arrays that are computed while they are read.

Kernels in few bits are widened: to bfloat16, and to float32 before an adapter is added.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.checkpoint import adapter_runs, grown, store, stream, widened
from sphinx_jax.checkpoint.bundle import Bundle
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
  arrays: dict[str, stream.StoredArray]


def split(place: store.Path) -> tuple[str, str | None]:
  """Splits 'BASE+ADAPTER' into two checkpoints; a checkpoint is never split."""
  text = os.fspath(place)
  if '+' in text and not store.is_checkpoint(text):
    for i, character in enumerate(text):
      if character == '+' and all(map(store.is_checkpoint, (text[:i], text[i + 1 :]))):
        return text[:i], text[i + 1 :]
  return text, None


def open_checkpoint(place: store.Path) -> Opened:
  """Opens a checkpoint, or BASE+ADAPTER with the adapter merged; no weight is read.

  Raises:
    SphinxError: a place is no checkpoint, or the adapter was trained with other weights.
  """
  base, adapter = split(place)
  meta, held = store.load_meta(base), stream.read(base, mapped=True)
  forms = Bundle.from_meta(meta, base).forms
  arrays = widened.widen(held, forms)
  source = {
    'directory': str(store.absolute_path(base)),
    'step': meta['step'],
    'identity': store.identity(base),
  }
  bundle = Bundle.from_meta(meta, base)
  if adapter is None:
    return Opened(bundle, source, arrays)
  meta_of_adapter = store.load_meta(adapter)
  adapter_runs.check_base(meta_of_adapter, adapter, base)
  source['adapter'] = str(store.absolute_path(adapter))
  source['adapter_identity'] = store.identity(adapter)
  trained, own = stream.read(adapter), Bundle.from_meta(meta_of_adapter, adapter)
  if own.tokenizer != bundle.tokenizer:
    bundle = _with_tokens(bundle, own)
    arrays, trained = grown.join(arrays, trained, own.config.model.llm.vocab)
  wide = widened.widen(held, forms, np.float32)
  exact = {**arrays, **{path: wide[path] for path in (f'{x}/{adapters.KERNEL}' for x in forms)}}
  return Opened(bundle, source, _merge(arrays, exact, trained))


def _with_tokens(base: Bundle, adapter: Bundle) -> Bundle:
  """The bundle of a base, with the tokens that its adapter adds."""
  config = base.config.copy_and_resolve_references()
  with config.unlocked():
    config.model.llm.vocab = adapter.config.model.llm.vocab
  return dataclasses.replace(
    base, config=config, tokenizer=adapter.tokenizer, added_tokens=adapter.added_tokens
  )


def _merge(
  base: Mapping[str, stream.StoredArray],
  exact: Mapping[str, stream.StoredArray],
  adapter: Mapping[str, stream.StoredArray],
) -> dict[str, stream.StoredArray]:
  """The arrays of a checkpoint with those of an adapter in them.

  Args:
    base: the arrays of the checkpoint, in the dtypes of the result.
    exact: the same, in dtypes that lose nothing.
    adapter: the arrays of the adapter.
  """
  merged = {**base, **{path: adapter[path] for path in adapter if path in base}}
  for path in adapter:
    layer, _, name = path.rpartition('/')
    if name == adapters.A:
      kernel = f'{layer}/{adapters.KERNEL}'
      leaves = (adapter[f'{layer}/{leaf}'].read(()) for leaf in adapters.LEAVES)
      merged[kernel] = _MergedArray(exact[kernel], base[kernel].dtype, *leaves)
  return merged


class _MergedArray(stream.Array):
  """A kernel [in,...], or a stack of them, with an adapter added, in a dtype."""

  def __init__(
    self,
    kernel: stream.StoredArray,
    dtype: np.dtype,
    a: np.ndarray,
    b: np.ndarray,
    scale: np.ndarray,
  ) -> None:
    super().__init__(kernel.shape, dtype, self._read, kernel.layers)
    self._kernel, self._adapter = kernel, (a, b, scale)

  @property
  def chunk(self) -> tuple[int, ...]:
    """Shape of a stored chunk of the kernel."""
    return self._kernel.chunk

  def start_read(self, index: stream.Index) -> '_PendingMerge':
    """Starts reading a part of the kernel."""
    return _PendingMerge(self._kernel.start_read(index), functools.partial(self._add, index))

  def _read(self, index: stream.Index) -> np.ndarray:
    return self.start_read(index).result()

  def _add(self, index: stream.Index, kernel: np.ndarray) -> np.ndarray:
    wide = kernel.astype(np.float32)
    return (wide + _delta(index, *self._adapter)).astype(self.dtype)


class _PendingMerge(NamedTuple):
  """A part of a kernel that is being read, and what adds the adapter to it."""

  kernel: stream.PendingRead
  add: Any

  def result(self) -> np.ndarray:
    """Waits for the part and returns it merged."""
    return self.add(self.kernel.result())


def _delta(index: stream.Index, a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """What an adapter adds to that part of the kernel, float32."""
  if scale.ndim:  # Of stacked layers.
    layer, *rest = index or (slice(None),)
    if isinstance(layer, slice):
      layers = range(len(scale))[layer]
      return np.stack([_delta(tuple(rest), a[i], b[i], scale[i]) for i in layers])
    return _delta(tuple(rest), a[layer], b[layer], scale[layer])
  rows, *features = index or (slice(None),)
  return scale * np.tensordot(a[rows], b[(slice(None), *features)], 1)
