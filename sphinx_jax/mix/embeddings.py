"""The mix of visual embeddings: several encoders' tokens of one view become one sequence.

Grids of patch features are aligned and joined by channel, class tokens beside them; query tokens are joined by sequence.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors


def align(grid_tokens: jax.Array, grid: int) -> jax.Array:
  """Repeats the cells of [B,G,G,E] to [B,grid,grid,E], so that coarser encoders stand beside finer ones.

  Raises:
    SphinxError: where `grid` is not a multiple of G.
  """
  own = grid_tokens.shape[1]
  if grid % own:
    raise errors.make(
      'channel mix',
      f'feature grids of {own}x{own} and {grid}x{grid}',
      'sizes that divide one another',
      "change the encoders' view, input or patch sizes",
    )
  if grid == own:
    return grid_tokens
  return jnp.repeat(jnp.repeat(grid_tokens, grid // own, axis=1), grid // own, axis=2)


def pool(grid_tokens: jax.Array, size: int) -> jax.Array:
  """Averages size x size cells: [B,G,G,E] -> [B,G/size,G/size,E].

  Raises:
    SphinxError: where `size` does not divide G.
  """
  batch, grid, _, width = grid_tokens.shape
  if grid % size:
    raise errors.make(
      'pool',
      f'a feature grid of {grid}x{grid}',
      f'a multiple of {size}',
      'change model.pool or the view',
    )
  return grid_tokens.reshape(batch, grid // size, size, grid // size, size, width).mean(axis=(2, 4))


def channel_mix(encoded: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
  """Joins [(class token [B,E], grid [B,G,G,E]), ...] of equal G by channel: [B,1+G*G,sum E], class token first."""
  classes = jnp.concatenate([cls for cls, _ in encoded], axis=-1)
  grids = jnp.concatenate([grid for _, grid in encoded], axis=-1)
  batch, _, _, width = grids.shape
  return jnp.concatenate([classes[:, None], grids.reshape(batch, -1, width)], axis=1)


def sequence_mix(query_tokens: jax.Array | None, mixed: jax.Array) -> jax.Array:
  """Joins projected query tokens [B,Q,D] (or none) and channel-mixed tokens [B,L,D] by sequence, queries first."""
  return mixed if query_tokens is None else jnp.concatenate([query_tokens, mixed], axis=1)
