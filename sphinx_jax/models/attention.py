"""Attention behind one function: `attend` masks, and a kernel chosen by name computes."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sphinx_jax.core import errors, tables

# Kernels for packed rows. Decoding over a cache, and encoders of one image a row, use 'xla'.
KERNELS = tables.Table(
  'attention kernel',
  {
    'xla': 'sphinx_jax.models.attention:xla_attention',
    'splash': 'sphinx_jax.parallel.splash:splash_attention',  # TPU
    'cudnn': 'sphinx_jax.models.attention:cudnn_attention',  # NVIDIA GPU, half precision
  },
)
AUTO = 'auto'

_PLATFORMS = {'splash': ('tpu',), 'cudnn': ('gpu', 'cuda')}
_MIN_BLOCK, _MAX_BLOCKS = 64, 8
_MOST_QUERIES = 1280  # Of a block of an encoder. More are computed block by block.


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  segments: jax.Array | None = None,
  key_segments: jax.Array | None = None,
  positions: jax.Array | None = None,
  window: int | None = None,
  kernel: str = 'xla',
) -> jax.Array:
  """Multi-head attention with grouped key/value heads: head h reads key/value head h // (H/K).

  With neither segments nor positions, every query sees every key (encoders).

  Args:
    query: [B,T,H,C] in the compute dtype. The softmax is computed in float32.
    key: [B,S,K,C].
    value: [B,S,K,C].
    segments: int32[B,T] of packed rows. A query sees positions of its own segment up to itself,
      S = T.
    key_segments: int32[B,S] of the keys. With it, a query sees all of its segment (images), and
      there are no positions and no window.
    positions: int32[B,T] in a cache whose slot is the position. A query at position p sees
      slots <= p.
    window: with segments or positions, the number of latest positions that a query sees, itself
      included; None: all.
    kernel: name in `KERNELS`, for packed rows; 'auto' is splash if the shapes allow it, or xla.

  Returns:
    [B,T,H,C] in the dtype of value.

  Raises:
    SphinxError: both segments and positions, heads that do not divide, or an unknown kernel.
  """
  if segments is not None and positions is not None:
    raise errors.make(
      'attend', 'segments and positions', 'at most one of them', 'packed rows have no cache'
    )
  if query.shape[2] % key.shape[2]:
    raise errors.make(
      'attend',
      f'{query.shape[2]} heads over {key.shape[2]} key/value heads',
      'a multiple',
      'change llm.heads or llm.kv_heads',
    )
  if kernel == AUTO:
    from sphinx_jax.parallel import splash  # Imported here: Pallas takes a second to import.

    kernel = 'splash' if splash.fits(query.shape, key_segments) else 'xla'
  kernel_function = KERNELS[kernel]
  if window is not None and window >= key.shape[1]:
    window = None  # It hides nothing.
  if segments is None:
    return xla_attention(query, key, value, positions=positions, window=window)
  attended = kernel_function(query, key, value, segments, window=window, key_segments=key_segments)
  return checkpoint_name(attended, 'attention')


def choose(kernel: str, platform: str) -> str:
  """Resolves a config's kernel name for a platform.

  Args:
    kernel: name in `KERNELS`, or 'auto': splash if possible on a TPU, xla on other platforms.
    platform: 'cpu', 'gpu' or 'tpu'.

  Returns:
    The name to pass to `attend`.

  Raises:
    SphinxError: an unknown name, or a kernel of another platform.
  """
  if kernel == AUTO:
    return AUTO if platform == 'tpu' else 'xla'
  if kernel not in KERNELS:
    raise errors.unknown('attention kernel', kernel, KERNELS)
  if kernel in _PLATFORMS and platform not in _PLATFORMS[kernel]:
    raise errors.make(
      'model.attention',
      f"'{kernel}' on {platform}",
      f"'{AUTO}', or a kernel of this platform",
      f'--config.model.attention={AUTO}',
    )
  return kernel


def visible(
  length: int,
  slots: int,
  segments: jax.Array | None = None,
  positions: jax.Array | None = None,
  window: int | None = None,
  key_segments: jax.Array | None = None,
) -> jax.Array | None:
  """The attention mask bool[B,length,slots], or None if every query sees every key.

  Segments [1 1 2] give [[1 0 0] [1 1 0] [0 0 1]].
  """
  if segments is None and positions is None:
    return None
  if key_segments is not None:
    return segments[:, :, None] == key_segments[:, None, :]
  # In a packed row, distances between its positions are those inside an example.
  at = jnp.arange(length)[None] if positions is None else positions
  distance = at[:, :, None] - jnp.arange(slots)
  mask = distance >= 0
  if window is not None:
    mask &= distance < window
  return mask if segments is None else mask & (segments[:, :, None] == segments[:, None, :])


def cudnn_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array,
  window: int | None = None,
  key_segments: jax.Array | None = None,
) -> jax.Array:
  """cuDNN's fused attention, for packed rows. Arguments as in `attend`.

  Raises:
    SphinxError: a dtype other than float16 and bfloat16.
  """
  if query.dtype.itemsize != 2:
    raise errors.make(
      'cudnn attention',
      f'{query.dtype}',
      'bfloat16 or float16',
      "--config.model.dtype=bfloat16, or attention='xla'",
    )
  mask = visible(query.shape[1], key.shape[1], segments, window=window, key_segments=key_segments)
  return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation='cudnn')


def xla_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array | None = None,
  positions: jax.Array | None = None,
  window: int | None = None,
  key_segments: jax.Array | None = None,
) -> jax.Array:
  """Plain matrix products, the reference for every other kernel. Arguments as in `attend`.

  Packed rows are computed in blocks of queries, each against the keys up to the block's end. This
  skips most of the keys that causality hides (4x faster on a CPU at 320 positions, together with
  normalizing after the second product). Many patches are computed in blocks too, one after the
  other and again in the backward pass: all scores of 4900 patches take 1.5 GiB in every layer.
  """
  batch, length, heads, width = query.shape
  slots, kv_heads = key.shape[1:3]
  query = query.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
  key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
  is_causal = segments is not None and key_segments is None
  if not is_causal and positions is None and length > _MOST_QUERIES:
    out = _one_by_one(query, key, value, segments, key_segments)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)
  mask = visible(length, slots, segments, positions, window, key_segments)
  blocks = max(1, min(_MAX_BLOCKS, length // _MIN_BLOCK)) if is_causal else 1
  parts, start = [], 0
  for i in range(blocks):
    end = length * (i + 1) // blocks
    seen = end if is_causal else slots
    block_mask = None if mask is None else mask[:, start:end, :seen]
    queries = query[..., start:end, :]
    parts.append(_block(queries, key[:, :, :seen], value[:, :, :seen], block_mask))
    start = end
  out = jnp.concatenate(parts, axis=3)
  return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _one_by_one(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array | None,
  key_segments: jax.Array | None,
) -> jax.Array:
  """`_block` of queries [B,K,R,T,C] that see all keys, or those of their segment, part by part."""
  length, slots = query.shape[3], key.shape[2]
  blocks = -(-length // _MOST_QUERIES)
  size = -(-length // blocks)

  def split(x: jax.Array, axis: int) -> jax.Array:
    """Parts [blocks, ...] of x along an axis of T."""
    padding = [(0, blocks * size - length) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, padding, mode='edge')
    return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :]), axis, 0)

  @jax.checkpoint
  def attend_part(part: tuple[jax.Array, jax.Array | None]) -> jax.Array:
    queries, of_queries = part
    mask = visible(size, slots, of_queries, key_segments=key_segments)
    return _block(queries, key, value, mask)

  of_parts = None if segments is None else split(segments, 1)
  out = jnp.moveaxis(jax.lax.map(attend_part, (split(query, 3), of_parts)), 0, 3)
  return out.reshape(*out.shape[:3], blocks * size, -1)[..., :length, :]


def _block(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Attention of query [B,K,R,T,C] over key and value [B,K,S,C], with mask bool[B,T,S].

  R query heads share a key/value head.
  """
  scores = jnp.einsum('bkrtc,bksc->bkrts', query, key, preferred_element_type=jnp.float32)
  scores = scores * query.shape[-1] ** -0.5
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  out = jnp.einsum(
    'bkrts,bksc->bkrtc', weights.astype(value.dtype), value, preferred_element_type=jnp.float32
  )
  return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
