"""The parameter tree of a run: the model's own, with adapters and quantized frozen matrices."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sphinx_jax.core import errors, trees
from sphinx_jax.models import adapters, families, stored, vocabulary
from sphinx_jax.training import state as states


class Layout(NamedTuple):
  """What a run stores of every parameter.

  Attributes:
    shapes: tree of ShapeDtypeStruct with the dtypes at rest.
    logical_axes: the same tree of tuples of dimension names.
    forms: layers with quantized kernels.
    scales: path of a layer with an adapter -> the adapter's factor.
  """

  shapes: dict
  logical_axes: dict
  forms: dict[str, stored.Matrix]
  scales: dict[str, float]


def layout(config: ConfigDict) -> Layout:
  """The parameter tree of one training run.

  Args:
    config: config of the run; `lora`, `frozen_dtype` and `tokenizer_add` may be absent.

  Raises:
    SphinxError: a pattern of `trainable` or `lora` matches nothing, nothing is trained, or the rows
      of new tokens are frozen.
  """
  axes = families.logical_axes(config.model)
  shapes, scales = families.abstract_params(config.model), {}
  lora, new_tokens = config.get('lora'), len(config.get('tokenizer_add', ()))
  if lora and new_tokens:
    shapes, axes = vocabulary.extend(shapes, axes, new_tokens)
  if lora:
    layers = adapters.matrices(axes)
    ranks = adapters.ranks(layers, lora.target, lora.rank, lora.ranks)
    shapes, axes = adapters.extend(shapes, axes, ranks)
    scales = {layer: scale(lora.alpha, rank, lora.rslora) for layer, rank in ranks.items()}
  states.check(axes, config.trainable)
  if new_tokens:
    _check_new_rows(trees.flatten(states.split(axes, config.trainable)[0]), bool(lora))
  shapes = _keep_scales(states.storage_dtypes(shapes, config.trainable, config.model.dtype))
  forms = {}
  if config.get('frozen_dtype'):
    trained, _ = states.split(axes, config.trainable)
    forms = stored.matrices(
      families.logical_axes(config.model), config.frozen_dtype, trees.flatten(trained)
    )
    shapes, axes = stored.extend(shapes, axes, forms)
  return Layout(shapes, axes, forms, scales)


def _check_new_rows(trained: Mapping, separate: bool) -> None:
  """Raises SphinxError if the rows of new tokens are frozen."""
  for path, table in vocabulary.TABLES.items():
    rows = table.new if separate else path
    if rows not in trained:
      raise errors.make(
        'tokenizer_add',
        f"{rows}, which is 'frozen'",
        'rows of new tokens that are trained',
        f"begin trainable with ('{rows}', 'train'), or train adapters (forkme:FILE,DIR,lora), "
        'beside which the new rows alone are trained',
      )


def scale(alpha: float, rank: int, rslora: bool) -> float:
  """The factor of an adapter: alpha / rank, or alpha / sqrt(rank) of rsLoRA (arXiv 2312.03732)."""
  return alpha / (math.sqrt(rank) if rslora else rank)


def _keep_scales(shapes: Mapping) -> dict:
  """The factors of adapters in float32, whatever the dtype of frozen parameters."""
  flat = trees.flatten(shapes)
  for path, leaf in flat.items():
    if path.rsplit('/', 1)[-1] == adapters.SCALE:
      flat[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
  return trees.unflatten(flat)
