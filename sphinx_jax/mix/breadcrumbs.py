"""Model breadcrumbs (arXiv 2312.06795): leave out the largest and the smallest differences.

Of every input's difference to the base, in each tensor alone, the largest `gamma` are outliers, and
of the others the largest `density` are kept. The result is the task arithmetic of what is kept. The
paper's beta is the share of the smallest ones, 1 - density - gamma. The defaults are those that
mergekit advises; the paper tunes them.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import order
from sphinx_jax.mix.tensors import Array, Part, Tensor


def measure(tensor: Tensor, options: Mapping) -> np.ndarray:
  """Returns the smallest and the largest magnitude that are kept, float32[inputs,2]."""
  if options['density'] == 1:
    return np.array([[0, np.inf]] * len(tensor.inputs), np.float32)
  kept = max(int(options['density'] * tensor.size), 1)
  smallest = max(tensor.size - kept - int(options['gamma'] * tensor.size), 0)
  return order.magnitudes(tensor, [smallest, smallest + kept - 1])


def mix(
  part: Part, coefficients: Sequence[float], measured: np.ndarray, options: Mapping, dtype: np.dtype
) -> jax.Array:
  """Masks and sums a part, see mix/methods.py."""
  numbers = jnp.asarray(coefficients, jnp.float32)
  return _mix(list(part.leaves), part.base, numbers, measured, dtype)


@functools.partial(jax.jit, static_argnames='dtype')
def _mix(
  leaves: Sequence[Array],
  base: Array,
  coefficients: jax.Array,
  ranges: jax.Array,
  dtype: np.dtype,
) -> jax.Array:
  origin = base.astype(jnp.float32)
  merged = 0.0
  for leaf, coefficient, (least, most) in zip(leaves, coefficients, ranges):
    difference = leaf.astype(jnp.float32) - origin
    size = jnp.abs(difference)
    merged += coefficient * jnp.where((size >= least) & (size <= most), difference, 0)
  return (origin + merged).astype(dtype)
