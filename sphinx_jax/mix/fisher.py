"""Fisher merging: a mean of parameters in which each counts by its information.

Matena and Raffel (arXiv 2111.09832) weigh every parameter of an input by its diagonal Fisher
information: how much the input's predictions change with it. `mix_stats` estimates it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import linear
from sphinx_jax.mix.tensors import Array, Part

# Less information counts as so much: the square of a gradient of 1e-10.
FLOOR = 1e-20


def mix(
  part: Part, coefficients: Sequence[float], measured: None, options: Mapping, dtype: np.dtype
) -> Array:
  """Mixes a part, see mix/methods.py; linearly if there is no information about it.

  Returns:
    sum(c_i * F_i * W_i) / sum(c_i * F_i) for the information F_i, at least FLOOR: the plain mean
    where no parent has any. It is computed in float32 as W_1 and differences from it, so that equal
    parents stay as they are.
  """
  if not part.fishers or len(part.leaves) == 1:
    return linear.mix_leaf(part.leaves, coefficients, dtype=dtype)
  shares = tuple(jnp.float32(coefficient) for coefficient in coefficients)
  return _mean(tuple(part.leaves), shares, tuple(part.fishers), dtype)


def _sum(
  leaves: tuple[jax.Array, ...],
  coefficients: tuple[jax.Array, ...],
  information: tuple[jax.Array, ...],
  dtype: Any,
) -> jax.Array:
  masses = [share * jnp.maximum(mass, FLOOR) for share, mass in zip(coefficients, information)]
  total = sum(masses)
  first, *others = (leaf.astype(jnp.float32) for leaf in leaves)
  moves = (mass / total * (leaf - first) for mass, leaf in zip(masses[1:], others))
  return (first + sum(moves)).astype(dtype)


_mean = jax.jit(_sum, static_argnums=3)
