"""The mix of visual embeddings: the tokens of several encoders for one view become one sequence.

Feature maps of patches are aligned and concatenated by channel, with the class tokens. Query tokens
are concatenated by sequence.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors


def align(feature_map: jax.Array, side: int) -> jax.Array:
  """Repeats the cells of a feature map, so that coarse and fine encoders have equal sizes.

  Args:
    feature_map: [B,G,G,E].
    side: cells per side of the result, a multiple of G.

  Returns:
    [B,side,side,E].

  Raises:
    SphinxError: `side` is not a multiple of G.
  """
  own_side = feature_map.shape[1]
  if side % own_side:
    raise errors.make(
      'channel mix',
      f'feature maps of {own_side}x{own_side} and {side}x{side}',
      'sizes that divide one another',
      "change the encoders' view, input or patch sizes",
    )
  repeats = side // own_side
  if repeats == 1:
    return feature_map
  return jnp.repeat(jnp.repeat(feature_map, repeats, axis=1), repeats, axis=2)


def pool(feature_map: jax.Array, size: int) -> jax.Array:
  """Averages blocks of size x size cells: [B,G,G,E] -> [B,G/size,G/size,E].

  Args:
    feature_map: [B,G,G,E].
    size: cells per side of a block, a divisor of G.

  Raises:
    SphinxError: `size` does not divide G.
  """
  batch, side, _, width = feature_map.shape
  if side % size:
    raise errors.make(
      'pool',
      f'a feature map of {side}x{side}',
      f'a multiple of {size}',
      'change model.pool or the view',
    )
  blocks = feature_map.reshape(batch, side // size, size, side // size, size, width)
  return blocks.mean(axis=(2, 4))


def channel_mix(encoded: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
  """Concatenates the tokens of several encoders by channel.

  Args:
    encoded: (class token [B,E], feature map [B,G,G,E]) of each encoder, with equal G.

  Returns:
    [B,1+G*G,sum of E], the class token first.
  """
  class_tokens = jnp.concatenate([token for token, _ in encoded], axis=-1)
  feature_maps = jnp.concatenate([feature_map for _, feature_map in encoded], axis=-1)
  batch, _, _, width = feature_maps.shape
  patches = feature_maps.reshape(batch, -1, width)
  return jnp.concatenate([class_tokens[:, None], patches], axis=1)


def class_tokens(mixed: jax.Array, count: int) -> jax.Array:
  """Returns copies of the class token, which fill the place of query tokens that are left out.

  A mix without a Q-Former then has as many positions as one with it, and no more information.

  Args:
    mixed: projected channel-mixed tokens [B,L,D], the class token first.
    count: number of copies.

  Returns:
    [B,count,D].
  """
  return jnp.repeat(mixed[:, :1], count, axis=1)


def sequence_mix(query_tokens: jax.Array | None, mixed: jax.Array) -> jax.Array:
  """Concatenates query tokens and channel-mixed tokens by sequence, queries first.

  Args:
    query_tokens: projected query tokens [B,Q,D], or None.
    mixed: projected channel-mixed tokens [B,L,D].

  Returns:
    [B,Q+L,D].
  """
  return mixed if query_tokens is None else jnp.concatenate([query_tokens, mixed], axis=1)
