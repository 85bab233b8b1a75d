"""Attention behind one function: `attend` says what a query may see, a kernel chosen by name computes it."""

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors, tables

KERNELS = tables.Table('attention kernel', {
    'xla': 'sphinx_jax.models.attention:xla_attention',
})


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, segments: jax.Array | None = None,
           positions: jax.Array | None = None, kernel: str = 'xla') -> jax.Array:
  """Attention of query [B,T,H,C] over key and value [B,S,K,C]; head h reads key/value head h // (H/K).

  Args:
    query: in the compute dtype, as are key and value; softmax is computed in float32.
    key: see query.
    value: see query.
    segments: int32[B,T]: packed rows, S = T. A query sees positions of its own segment up to itself.
    positions: int32[B,T]: a cache whose slot is the position. A query at position p sees slots <= p.
      With neither, every query sees every key (encoders).
    kernel: a name of `KERNELS`.

  Returns:
    [B,T,H,C] in the dtype of value.

  Raises:
    SphinxError: for both segments and positions, heads that do not divide, or an unknown kernel.
  """
  if segments is not None and positions is not None:
    raise errors.make('attend', 'segments and positions', 'at most one of them', 'packed rows have no cache')
  if query.shape[2] % key.shape[2]:
    raise errors.make('attend', f'{query.shape[2]} heads over {key.shape[2]} key/value heads', 'a multiple',
                      'change llm.heads or llm.kv_heads')
  return KERNELS[kernel](query, key, value, segments, positions)


def visible(length: int, slots: int, segments: jax.Array | None, positions: jax.Array | None) -> jax.Array | None:
  """bool[B,length,slots]: which key a query sees, or None for all. [1 1 2] as segments gives [[1 0 0] [1 1 0] [0 0 1]]."""
  if segments is not None:
    index = jnp.arange(length)
    return (segments[:, :, None] == segments[:, None, :]) & (index[:, None] >= index)
  if positions is not None:
    return positions[:, :, None] >= jnp.arange(slots)
  return None


def xla_attention(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None,
                  positions: jax.Array | None) -> jax.Array:
  """The plain products; what every other kernel is checked against. Arguments as `attend`."""
  batch, length, heads, width = query.shape
  slots, kv_heads = key.shape[1:3]
  query = query.reshape(batch, length, kv_heads, heads // kv_heads, width) * width ** -0.5
  scores = jnp.einsum('btkrc,bskc->bkrts', query, key, preferred_element_type=jnp.float32)
  mask = visible(length, slots, segments, positions)
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum('bkrts,bskc->btkrc', weights, value).reshape(batch, length, heads, width)
