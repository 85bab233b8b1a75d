"""Splash attention, the blockwise Pallas kernel for TPU.

Scores never leave the chip, and blocks that are fully masked are skipped.
"""

import functools
import math
from collections.abc import Sequence

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
  splash_attention_mask as masks,
)

from sphinx_jax.core import errors
from sphinx_jax.parallel import rules

_LANES = 128  # Lanes of a TPU vector register: T and C must be multiples of it.
_BLOCKS = (512, 256, 128)  # Positions of a block; the first that divides T is used.


def fits(shape: Sequence[int], key_segments: jax.Array | None = None) -> bool:
  """Whether the kernel accepts queries of this shape [B,T,H,C], see `splash_attention`."""
  if key_segments is None:
    return shape[1] % _LANES == 0 and shape[3] % _LANES == 0
  rows, parts = (
    math.prod(_mesh().shape[axis] for axis in rules.RULES[name].compute) if _mesh() else 1
    for name in ('batch', 'patches')
  )
  return not (shape[0] % rows or shape[1] % (parts * _LANES) or key_segments.shape[1] % _LANES)


def splash_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array,
  window: int | None = None,
  key_segments: jax.Array | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Attention within the segments of packed rows, causal unless there are `key_segments`.

  Each device computes its rows, and its heads or, with `key_segments`, its queries.

  Args:
    query: float[B,T,H,C].
    key: float[B,S,K,C].
    value: float[B,S,K,C].
    segments: int32[B,T]; 0 is padding.
    window: latest positions that a query sees, itself included; None: all.
    key_segments: int32[B,S], see `attention.attend`; None: those of the queries, S = T.
    interpret: run the kernel without a TPU, slowly, for tests.

  Returns:
    [B,T,H,C] in the dtype of the query.

  Raises:
    SphinxError: T or S is not a multiple of 128, or, of causal attention, C.
  """
  if not fits(query.shape, key_segments):
    raise errors.make(
      'splash attention',
      f'{query.shape[1]} positions and heads of {query.shape[3]}',
      f'multiples of {_LANES}',
      'change batch.seq_len, or --config.model.attention=auto',
    )
  attend = functools.partial(
    _attend, is_causal=key_segments is None, window=window, interpret=interpret
  )
  if key_segments is None:
    key_segments = segments
    names = (None, 'heads'), (None, 'kv_heads')
  else:
    names = ('patches', None), (None, None)
  if _mesh():
    queries, keys = (rules.partition(('batch', *split, None), compute=True) for split in names)
    of_queries, of_keys = (rules.partition(('batch', length), compute=True) for length, _ in names)
    attend = jax.shard_map(
      attend,
      mesh=_mesh(),
      in_specs=(queries, keys, keys, of_queries, of_keys),
      out_specs=queries,
      check_vma=False,
    )
  return attend(query, key, value, segments, key_segments)


def _mesh() -> jax.sharding.AbstractMesh | None:
  """The mesh in context if it has several devices."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


def _attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array,
  key_segments: jax.Array,
  is_causal: bool,
  window: int | None,
  interpret: bool,
) -> jax.Array:
  length, heads, width = query.shape[1:]
  shape = (length, key.shape[1])
  block, key_block = (next(size for size in _BLOCKS if n % size == 0) for n in shape)
  sizes = kernels.BlockSizes(
    block_q=block,
    block_kv=key_block,
    block_q_dkv=block,
    block_kv_dkv=key_block,
    block_q_dq=block,
    block_kv_dq=key_block,
  )
  if not is_causal:
    mask = masks.FullMask(shape)
  else:
    mask = masks.CausalMask(shape)
    if window is not None:
      mask = masks.LocalMask(shape, (window - 1, 0), 0)
  kernel = kernels.make_splash_mha_single_device(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    residual_checkpoint_name='attention',
    interpret=interpret,
  )
  heads_first = lambda x: x.swapaxes(1, 2)
  out = jax.vmap(kernel)(
    heads_first(query * width**-0.5),
    heads_first(key),
    heads_first(value),
    kernels.SegmentIds(segments, key_segments),
  )
  return heads_first(out).astype(query.dtype)
