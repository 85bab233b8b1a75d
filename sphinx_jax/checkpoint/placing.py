"""Reads arrays onto devices one by one, and quantizes matrices on the way.

No more than one matrix is there in its stored dtype, so that a model that fits only in 4 bits can
be loaded.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint.stream import Array
from sphinx_jax.core import trees
from sphinx_jax.core.progress import Progress
from sphinx_jax.models import adapters, quantized, stored


def place(
  arrays: Mapping[str, Array],
  expected: Mapping | None = None,
  forms: Mapping[str, stored.Matrix] | None = None,
) -> dict:
  """Reads the parameters of a checkpoint or of foreign files.

  Args:
    arrays: path -> array, not read yet.
    expected: tree whose leaves have dtype and sharding; leaves that are no array of these are
      ignored. None: the stored dtypes, on the first device.
    forms: layers whose kernels are quantized.

  Returns:
    Tree of jax.Array.
  """
  wanted, forms, params = trees.flatten(expected or {}), forms or {}, {}
  with Progress(total=trees.nbytes(arrays), what='reading', unit='B') as bar:
    for path, array in arrays.items():
      layer, _, name = path.rpartition('/')
      if name == adapters.KERNEL and layer in forms:
        for leaf, value in _quantized(array, forms[layer]).items():
          params[f'{layer}/{leaf}'] = _put(value, wanted.get(f'{layer}/{leaf}'))
      else:
        params[path] = _put(array.read(()), wanted.get(path))
      bar.update(array.nbytes)
  return trees.unflatten(params)


def _quantized(array: Array, matrix: stored.Matrix) -> dict[str, Any]:
  """The arrays of a quantized kernel, of which one layer at a time is read."""
  if not matrix.stack:
    return quantize(array.read(()), matrix.form)
  layers = [
    quantize(array.read((i,)), matrix.form, matrix.stack - 1) for i in range(array.shape[0])
  ]
  return {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}


@functools.partial(jax.jit, static_argnames=('form', 'stack'))
def quantize(kernel: np.ndarray, form: str, stack: int = 0) -> dict[str, jax.Array]:
  """The arrays in place of a kernel float[in,...], or of a stack of them: `quantized.quantize`."""
  return stored.over_stack(functools.partial(quantized.quantize, form=form), stack)(kernel)


def _put(value: Any, like: Any) -> jax.Array:
  """An array that this process has whole, in the dtype and sharding of `like`."""
  if like is None:
    return jax.device_put(value, jax.local_devices()[0])
  if jnp.issubdtype(value.dtype, jnp.floating):
    value = value.astype(like.dtype)
  if like.sharding is None or like.sharding.is_fully_addressable:
    return jax.device_put(value, like.sharding)
  whole = np.asarray(value)
  return jax.make_array_from_callback(whole.shape, like.sharding, lambda index: whole[index])
