"""Parameter trees in which layers have quantized kernels.

A model's own tree (`families.init`) has a 'kernel' for every matrix. In place of one there may be
the arrays of models/quantized.py, and beside it an adapter (models/adapters.py). `layers.Dense`
computes with what it finds.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sphinx_jax.core import trees
from sphinx_jax.models import adapters, quantized
from sphinx_jax.models.adapters import KERNEL

_WHOLE = ('llm/output',)  # The LM head, whose matrix the loss takes whole.


class Matrix(NamedTuple):
  """A layer whose kernel is quantized: name in `quantized.FORMS`, and dimensions of the stack."""

  form: str
  stack: int


def matrices(logical_axes: Mapping, form: str, without: Collection[str] = ()) -> dict[str, Matrix]:
  """The layers of a model whose kernels can be quantized.

  Args:
    logical_axes: tree of `families.logical_axes`.
    form: name in `quantized.FORMS`.
    without: paths of kernels that stay as they are, for instance as they are trained.
  """
  axes = trees.flatten(logical_axes)
  return {
    layer: Matrix(form, adapters.stack_of(axes[f'{layer}/{KERNEL}']))
    for layer in adapters.matrices(logical_axes)
    if f'{layer}/{KERNEL}' not in without and layer not in _WHOLE
  }


def as_form(path: str, forms: Mapping[str, Matrix]) -> str:
  """The path of an array in a tree with these forms: 'int8_dynamic' has the codes of 'int8'."""
  layer, _, name = path.rpartition('/')
  if name == 'int8' and layer in forms:
    return f'{layer}/{forms[layer].form}'
  return path


def extend(
  shapes: Mapping, logical_axes: Mapping, forms: Mapping[str, Matrix]
) -> tuple[dict, dict]:
  """Replaces kernels by the arrays of their quantized form in a tree of shapes and one of names."""
  shapes, axes = trees.flatten(shapes), trees.flatten(logical_axes)
  for layer, matrix in forms.items():
    names, kernel = axes.pop(f'{layer}/{KERNEL}'), shapes.pop(f'{layer}/{KERNEL}')
    stack = matrix.stack
    for leaf, shape in quantized.shapes(kernel.shape[stack:], matrix.form).items():
      shapes[f'{layer}/{leaf}'] = jax.ShapeDtypeStruct(
        (*kernel.shape[:stack], *shape.shape), shape.dtype
      )
      axes[f'{layer}/{leaf}'] = names
  return trees.unflatten(shapes), trees.unflatten(axes)


def merge(leaves: Mapping[str, jax.Array], stack: int) -> jax.Array:
  """The kernel float32[in,...] of a layer's arrays, with its adapter added.

  Args:
    leaves: 'kernel' or the arrays of a quantized form, and perhaps an adapter.
    stack: number of dimensions in front of a matrix.
  """

  def of_one(leaves: Mapping[str, jax.Array]) -> jax.Array:
    if KERNEL in leaves:
      kernel = leaves[KERNEL].astype(jnp.float32)
    else:
      kernel = quantized.widen(leaves)
    if adapters.A not in leaves:
      return kernel
    return kernel + adapters.delta(leaves).reshape(kernel.shape)

  return over_stack(of_one, stack)(dict(leaves))


def over_stack(of_one: Callable[[Any], Any], stack: int) -> Callable[[Any], Any]:
  """A function of the arrays of one matrix as one of a stack, which it takes one by one."""
  if not stack:
    return of_one
  return functools.partial(jax.lax.map, over_stack(of_one, stack - 1))


def by_layer(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The arrays of every layer that has a kernel, quantized or not, from a flat tree."""
  layers: dict[str, dict[str, Any]] = {}
  for path, leaf in params.items():
    layer, _, name = path.rpartition('/')
    if name in (KERNEL, quantized.SCALE, *quantized.FORMS, *adapters.LEAVES):
      layers.setdefault(layer, {})[name] = leaf
  return layers
