"""TIES merging (arXiv 2306.01708): trim, elect signs, and merge what agrees with them.

Of every input's difference to the base the largest `density` are kept. The sign of a number is that
of the sum of c_i times the differences, and the result is

    base + lambda * (sum of c_i * d_i) / (sum of c_i)

over the differences of that sign. The coefficients are weights of a mean: only their ratios matter.
The paper trims all parameters of a model together; here and in mergekit each tensor is trimmed
alone. As in the paper's code, numbers as large as the smallest that is kept are kept, too.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import order
from sphinx_jax.mix.tensors import Array, Part, Tensor


def measure(tensor: Tensor, options: Mapping) -> np.ndarray:
  """Returns the smallest magnitudes that are kept, float32[inputs]."""
  if options['density'] == 1:
    return np.zeros(len(tensor.inputs), np.float32)
  kept = max(int(options['density'] * tensor.size), 1)
  return order.magnitudes(tensor, [tensor.size - kept])[:, 0]


def mix(
  part: Part, coefficients: Sequence[float], measured: np.ndarray, options: Mapping, dtype: np.dtype
) -> jax.Array:
  """Trims, elects and merges a part, see mix/methods.py."""
  numbers = jnp.asarray(coefficients, jnp.float32)
  return _mix(list(part.leaves), part.base, numbers, measured, options['lambda'], dtype)


@functools.partial(jax.jit, static_argnames='dtype')
def _mix(
  leaves: Sequence[Array],
  base: Array,
  coefficients: jax.Array,
  thresholds: jax.Array,
  factor: jax.Array,
  dtype: np.dtype,
) -> jax.Array:
  origin = base.astype(jnp.float32)
  differences = [leaf.astype(jnp.float32) - origin for leaf in leaves]
  trimmed = [jnp.where(jnp.abs(d) >= t, d, 0) for d, t in zip(differences, thresholds)]
  return (origin + factor * elected_mean(trimmed, coefficients)).astype(dtype)


def elected_mean(differences: Sequence[jax.Array], coefficients: jax.Array) -> jax.Array:
  """Returns the weighted mean of the differences that have the elected sign; 0 if none has.

  Args:
    differences: to the base, of one shape; 0 votes for no sign.
    coefficients: float32[inputs].
  """
  weighted = [c * difference for c, difference in zip(coefficients, differences)]
  elected = jnp.where(sum(weighted) >= 0, 1.0, -1.0)
  agrees = [jnp.sign(value) == elected for value in weighted]
  total = sum(jnp.where(agree, value, 0) for agree, value in zip(agrees, weighted))
  weight = sum(jnp.where(agree, c, 0) for agree, c in zip(agrees, coefficients))
  return total / jnp.where(weight == 0, 1, weight)
