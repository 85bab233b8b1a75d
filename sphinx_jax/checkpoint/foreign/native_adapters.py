"""Reads LoRA adapters of PEFT as adapters of our parameters.

PEFT has a matrix A [r,in] and a matrix B [out,r] for each Linear of HF transformers. One of our
kernels may be a stack of them, have several side by side, or have its outputs in another order. So
A is transposed, B is rearranged like the weight, and the layers of a stack are padded to one rank.
`adapter_export` is the way back.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import bundle, store, stream, widened
from sphinx_jax.checkpoint.factors import Factors
from sphinx_jax.checkpoint.foreign import adapters as peft, assemble, export, files
from sphinx_jax.models import adapters, foreign

WEIGHT = '.weight'


class Adapter(NamedTuple):
  """An adapter of PEFT for one of our checkpoints.

  Attributes:
    factors: path of a parameter -> what is added to it.
    replaced: path of a parameter -> the array that takes its place.
  """

  factors: dict[str, Factors]
  replaced: dict[str, np.ndarray]

  def unmerged(self) -> dict[str, stream.HeldArray] | None:
    """The arrays that a run with this adapter would hold; None: no layer computes it unmerged."""
    arrays = {path: stream.HeldArray(value) for path, value in self.replaced.items()}
    for path, factors in self.factors.items():
      layer, _, name = path.rpartition('/')
      if name != adapters.KERNEL or factors.magnitude is not None:
        return None
      for leaf, value in zip(adapters.LEAVES, factors):
        arrays[f'{layer}/{leaf}'] = stream.HeldArray(value)
    return arrays


def read(folder: files.Path, base: store.Path) -> Adapter:
  """Reads an adapter of PEFT for a checkpoint of ours.

  Of the checkpoint, only parameters are read of which the adapter replaces a part.

  Args:
    folder: folder of the adapter, or its name in the local hub cache.
    base: the checkpoint: that of a model that HF transformers has, or one with such a language
      model.

  Raises:
    SphinxError: as `adapters.parse`.
  """
  meta = store.load_meta(base)
  carried = bundle.Bundle.from_meta(meta, base)
  table = export.huggingface_table(carried.config.model)
  arrays = widened.widen(stream.read(base), carried.forms)
  tensors = export.foreign_tensors(table, arrays)
  parsed = peft.parse(tensors, folder, base, meta.get('foreign', {}).get('name'))
  factors, replaced = {}, {}
  for path, weights in foreign.by_path(table).items():
    keys = [key for weight in weights for _, key in weight.places()]
    if parsed.replaced.keys() & keys:
      parts = {key: parsed.replaced.get(key, tensors[key]) for key in keys}
      dtype = functools.reduce(jnp.promote_types, (part.dtype for part in parts.values()))
      leaf = jax.ShapeDtypeStruct(arrays[path].shape, dtype)
      replaced[path] = assemble.read_native(parts, weights, leaf, ())
    if any(key.removesuffix(WEIGHT) in parsed.modules for key in keys if key.endswith(WEIGHT)):
      factors[path] = _factors(weights, parsed.modules, arrays[path].shape)
  return Adapter(factors, replaced)


def _factors(
  weights: Sequence[foreign.Weight], modules: Mapping[str, Any], shape: Sequence[int]
) -> Factors:
  """The adapters of all modules that one of our parameters, of this shape, consists of."""
  layers = weights[0].layers
  if layers is None:
    return _factors_of_layer([(weight, weight.key) for weight in weights], modules, shape)
  found = [
    _factors_of_layer(
      [(weight, weight.key.format(weight.layers[i])) for weight in weights], modules, shape[1:]
    )
    for i in range(len(layers))
  ]
  return _stacked(found, shape[2:])


def _stacked(found: Sequence[Factors], features: Sequence[int]) -> Factors:
  """The adapters of a stack from those of its layers or experts, each with these features."""
  rank = max(factors.a.shape[-1] for factors in found)
  has_magnitude = any(factors.magnitude is not None for factors in found)
  own_length = np.full(features, np.nan, np.float32)
  return Factors(
    np.stack([_padded(factors.a, factors.a.ndim - 1, rank) for factors in found]),
    np.stack([_padded(factors.b, factors.scale.ndim, rank) for factors in found]),
    np.stack([factors.scale for factors in found]),
    np.stack([own_length if f.magnitude is None else f.magnitude for f in found])
    if has_magnitude
    else None,
  )


def _padded(matrix: np.ndarray, axis: int, size: int) -> np.ndarray:
  """The matrix with zeros behind it along one axis."""
  width = [(0, size - n if i == axis else 0) for i, n in enumerate(matrix.shape)]
  return np.pad(matrix, width)


def _factors_of_layer(
  weights: Sequence[tuple[foreign.Weight, str]], modules: Mapping[str, Any], shape: Sequence[int]
) -> Factors:
  """The adapters of the modules that one layer of a parameter consists of.

  Args:
    weights: the modules' rows in the table, with their names.
    modules: name -> (part -> matrix, scale).
    shape: [in,*features] of the layer, or [experts,in,out].
  """
  if weights[0][0].expert is not None:  # An expert has a module of its own.
    of_experts = [
      _factors_of_layer([(dataclasses.replace(weight, part=()), key)], modules, shape[1:])
      for weight, key in weights
    ]
    return _stacked(of_experts, shape[2:])
  a, b = [np.zeros((shape[0], 0), np.float32)], [np.zeros((0, *shape[1:]), np.float32)]
  scale, magnitude = np.float32(0), None
  for weight, key in weights:
    if key.removesuffix(WEIGHT) not in modules or not key.endswith(WEIGHT):
      continue
    parts, factor = modules[key.removesuffix(WEIGHT)]
    matrices = {name: tensor.read().astype(np.float32) for name, tensor in parts.items()}
    if 'embedding_A' in matrices:  # A table [tokens,width], which is no Linear.
      return Factors(matrices['embedding_A'].T, matrices['embedding_B'].T, np.float32(factor))
    features = weight.to_native(matrices['B'])  # [r,*features of this module]
    # Modules side by side may have scales of their own.
    scale = np.float32(1 if weight.part else factor)
    own = np.zeros((len(features), *shape[1:]), np.float32)
    own[weight.part or ...] = features * np.float32(factor) if weight.part else features
    a.append(matrices['A'].T)
    b.append(own)
    if 'magnitude_vector' in matrices:
      magnitude = np.full(shape[1:], np.nan, np.float32) if magnitude is None else magnitude
      lengths = weight.to_native(matrices['magnitude_vector'][:, None])[0]
      magnitude[weight.part[1:] or ...] = lengths
  return Factors(np.concatenate(a, 1), np.concatenate(b), scale, magnitude)
