"""Spherical interpolation (Shoemake, 1985): a tensor is rotated from one parent to the other.

The lengths are mixed as mergekit does it: each parent is multiplied by its factor as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import linear
from sphinx_jax.mix.tensors import Array, Part, Tensor

# Above this cosine slerp falls back to the straight line, as in mergekit.
PARALLEL = 0.9995


def measure(tensor: Tensor, options: Mapping) -> Sequence[Any]:
  """Returns the factors of both parents; the coefficient of one parent alone."""
  if len(tensor.coefficients) == 1:
    return tensor.coefficients
  products = [dot_products(*part.leaves) for part in tensor.parts()]
  aa, ab, bb = (sum(column[1:], start=column[0]) for column in zip(*products))
  return factors(tensor.coefficients, aa, ab, bb)


def mix(
  part: Part,
  coefficients: Sequence[Any],
  measured: Sequence[Any],
  options: Mapping,
  dtype: np.dtype,
) -> Array:
  """Multiplies both parents by their factors and adds them, see mix/methods.py."""
  return linear.mix_leaf(part.leaves, measured, None, dtype)


@jax.jit
def dot_products(first: Array, second: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the dot products that slerp needs, of two leaves or of equal parts of them.

  Returns:
    (first . first, first . second, second . second), each float32[].
  """
  a, b = (leaf.astype(jnp.float32) for leaf in (first, second))
  return dot(a, a), dot(a, b), dot(b, b)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the dot product of two arrays of one shape, taken as vectors."""
  # Sum each row first: one long float32 sum would lose its small terms.
  rows = (a * b).sum(-1) if a.ndim else a * b
  return rows.sum()


def factors(
  coefficients: Sequence[float], aa: Any, ab: Any, bb: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns the factors by which slerp multiplies its two parents, as mergekit computes them.

  Args:
    coefficients: of the two parents, with sum 1.
    aa, ab, bb: from `dot_products`.

  Returns:
    Two float32[]: the sines of the shares of the angle, over the sine of the angle. If the parents
    are parallel, the coefficients themselves.
  """
  first, second = (jnp.float32(coefficient) for coefficient in coefficients)
  lengths = [jnp.sqrt(jnp.float32(square)) for square in (aa, bb)]
  cosine = jnp.float32(ab)
  for length in lengths:
    cosine /= jnp.where(length > 1e-8, length, 1)
  is_parallel = jnp.abs(cosine) > PARALLEL
  angle = jnp.arccos(jnp.where(is_parallel, 0, cosine))
  return (
    jnp.where(is_parallel, first, jnp.sin(first * angle) / jnp.sin(angle)),
    jnp.where(is_parallel, second, jnp.sin(second * angle) / jnp.sin(angle)),
  )
