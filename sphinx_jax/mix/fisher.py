"""Fisher merging: a mean of parameters in which each counts by its information.

Matena and Raffel (arXiv 2111.09832) weigh every parameter of an input by its diagonal Fisher
information: how much the input's predictions change with it. `mix_stats` estimates it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import weights

# Below it, information is that of no gradient: the square of 1e-10.
FLOOR = 1e-20

Array = jax.Array | np.ndarray


def mix_leaf(
  leaves: Sequence[Array],
  coefficients: Sequence[float],
  information: Sequence[Array],
  dtype: Any = None,
) -> Array:
  """Mixes one leaf, or a part of it: the operation is elementwise.

  Args:
    leaves: one array per parent, all of one shape.
    coefficients: one per parent, at least 0.
    information: the diagonal Fisher information of each, of the shape of a leaf. Less than FLOOR
      counts as FLOOR, so that the result is the plain mean where no parent has any.
    dtype: dtype of a floating-point result; None: the first leaf's.

  Returns:
    sum(c_i * F_i * W_i) / sum(c_i * F_i), computed in float32 as W_1 and differences from it, so
    that equal parents stay as they are.
  """
  dtype = weights.out_dtype(leaves[0].dtype, dtype)
  used = [(*row,) for row in zip(leaves, coefficients, information) if row[1] != 0]
  if len(used) == 1:
    return jnp.asarray(used[0][0]).astype(dtype)
  parts, shares, masses = zip(*used)
  return _mean(parts, tuple(jnp.float32(share) for share in shares), masses, dtype)


def _sum(
  leaves: tuple[jax.Array, ...],
  coefficients: tuple[jax.Array, ...],
  information: tuple[jax.Array, ...],
  dtype: Any,
) -> jax.Array:
  masses = [
    share * jnp.maximum(mass.astype(jnp.float32), FLOOR)
    for share, mass in zip(coefficients, information)
  ]
  total = sum(masses)
  first, *others = (leaf.astype(jnp.float32) for leaf in leaves)
  moves = (mass / total * (leaf - first) for mass, leaf in zip(masses[1:], others))
  return (first + sum(moves)).astype(dtype)


_mean = jax.jit(_sum, static_argnums=3)
