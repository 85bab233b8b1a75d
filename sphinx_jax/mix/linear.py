"""The linear mix: the sum of c_i * W_i, or from a base the task arithmetic of arXiv 2212.04089.

The paper mixes two runs as `W = b * W_real + (1 - b) * W_synthetic` (arXiv 2311.07575, section
3.1). Task arithmetic is `base + sum of c_i * (W_i - base)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix.tensors import Array, Part


def mix(
  part: Part, coefficients: Sequence[Any], measured: None, options: Mapping, dtype: np.dtype
) -> Array:
  """Mixes a part linearly, see mix/methods.py."""
  return mix_leaf(part.leaves, coefficients, part.base, dtype)


def mix_leaf(
  leaves: Sequence[Array],
  coefficients: Sequence[Any],
  base: Array | None = None,
  dtype: Any = None,
) -> Array:
  """Mixes one leaf linearly, or a part of it: the operation is elementwise.

  Args:
    leaves: one array per parent, all of one shape.
    coefficients: one per parent, Python numbers or float32[]. A Python 0 leaves its parent unread,
      and a single Python 1 returns its parent.
    base: the leaf that the parents started from, or None.
    dtype: dtype of a floating-point result; None: the first leaf's.

  Returns:
    The float32 sum, cast to the dtype. The compiler may fuse a multiplication and an addition on a
    CPU into one operation that rounds once.
  """
  dtype = out_dtype(leaves[0].dtype, dtype)
  used = [
    (leaf, coefficient)
    for leaf, coefficient in zip(leaves, coefficients)
    if not _is_plain(coefficient, 0)
  ]
  if base is not None and not used:
    used = [(base, 1)]
  if len(used) == 1 and _is_plain(used[0][1], 1):
    leaf = used[0][0]
    return leaf if leaf.dtype == dtype else jnp.asarray(leaf).astype(dtype)
  if not used:
    return jnp.zeros(leaves[0].shape, dtype)
  used_leaves = [leaf for leaf, _ in used]
  used_coefficients = [jnp.float32(coefficient) for _, coefficient in used]
  return _weighted_sum(used_leaves, used_coefficients, base, dtype)


def _is_plain(coefficient: Any, value: int) -> bool:
  """Whether a coefficient is a Python number (not a traced or computed one) of this value."""
  return isinstance(coefficient, (int, float)) and coefficient == value


def _sum(
  leaves: Sequence[jax.Array],
  coefficients: Sequence[jax.Array],
  base: jax.Array | None,
  dtype: Any,
) -> jax.Array:
  wide = [leaf.astype(jnp.float32) for leaf in leaves]
  if base is None:
    return sum(c * leaf for leaf, c in zip(wide, coefficients)).astype(dtype)
  start = base.astype(jnp.float32)
  return (start + sum(c * (leaf - start) for leaf, c in zip(wide, coefficients))).astype(dtype)


# Compiled for every caller, so that rounding is the same everywhere; one pass over memory.
_weighted_sum = jax.jit(_sum, static_argnums=3)


def out_dtype(stored: Any, requested: Any = None) -> np.dtype:
  """Returns the dtype of a mixed leaf: the requested one if the leaf is floating-point."""
  is_cast = requested is not None and jnp.issubdtype(stored, jnp.floating)
  return np.dtype(requested if is_cast else stored)
