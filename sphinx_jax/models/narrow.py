"""Products with 16-bit weights at rest on a CPU, in float32 and tile by tile.

XLA:CPU takes several times as long for a product in bfloat16 as in float32, and widening a whole
matrix first takes as long (docs/results.md, "Decoding beside transformers"). So weights are given
as their bits, uint16. A shift makes float32 of them, and only a tile of them is ever wide.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

BITS = jnp.uint16  # The dtype of such weights. No other parameter has it.

_FEW = 16  # Most rows of x whose product is a sum over tiles of rows of the weights.
_ROWS, _COLUMNS = 128, 1024  # Of a tile.


def bits(leaf: Any) -> Any:
  """The bits of a bfloat16 matrix on a CPU, in the same memory; other arrays as they are."""
  if leaf.dtype != ml_dtypes.bfloat16 or leaf.ndim < 2:
    return leaf
  return jax.device_put(np.asarray(leaf).view(np.uint16))


def widen(x: jax.Array) -> jax.Array:
  """Bits of bfloat16 as float32; other arrays as they are."""
  if x.dtype != BITS:
    return x
  return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def matmul(x: jax.Array, weights: jax.Array) -> jax.Array:
  """The product of x float32[rows,in] and weights uint16[in,out], float32[rows,out]."""
  rows, width = x.shape
  out = weights.shape[1]
  cut = jax.lax.dynamic_slice_in_dim
  if rows <= _FEW:  # The sum stays in the cache, and the weights are read once, in order.
    tile = min(_ROWS, width)
    whole = width // tile

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
      return total + cut(x, i * tile, tile, 1) @ widen(cut(weights, i * tile, tile, 0))

    rest = x[:, whole * tile :] @ widen(weights[whole * tile :])
    return jax.lax.fori_loop(0, whole, add, rest)

  tile = min(_COLUMNS, out)

  def fill(i: jax.Array, total: jax.Array) -> jax.Array:
    at = jnp.minimum(i * tile, out - tile)  # The last tile may overlap the one before.
    part = x @ widen(cut(weights, at, tile, 1))
    return jax.lax.dynamic_update_slice_in_dim(total, part, at, 1)

  return jax.lax.fori_loop(0, -(-out // tile), fill, jnp.zeros((rows, out), jnp.float32))
