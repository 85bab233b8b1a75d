"""Splash attention, the blockwise Pallas kernel for TPU.

Scores never leave the chip, and blocks that are fully masked are skipped.
"""

import functools
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


def fits(shape: Sequence[int]) -> bool:
  """Whether the kernel accepts queries of this shape [B,T,H,C]."""
  return shape[1] % _LANES == 0 and shape[3] % _LANES == 0


def splash_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array,
  window: int | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Causal attention within the segments of packed rows. Each device computes its rows and heads.

  Args:
    query: float[B,T,H,C].
    key: float[B,T,K,C].
    value: float[B,T,K,C].
    segments: int32[B,T]; 0 is padding.
    window: latest positions that a query sees, itself included; None: all.
    interpret: run the kernel without a TPU, slowly, for tests.

  Returns:
    [B,T,H,C] in the dtype of the query.

  Raises:
    SphinxError: T or C is not a multiple of 128.
  """
  if not fits(query.shape):
    raise errors.make(
      'splash attention',
      f'{query.shape[1]} positions and heads of {query.shape[3]}',
      f'multiples of {_LANES}',
      'change batch.seq_len, or --config.model.attention=auto',
    )
  attend = functools.partial(_attend, window=window, interpret=interpret)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    heads = rules.partition(('batch', None, 'heads', None), compute=True)
    kv_heads = rules.partition(('batch', None, 'kv_heads', None), compute=True)
    attend = jax.shard_map(
      attend,
      mesh=mesh,
      in_specs=(heads, kv_heads, kv_heads, rules.partition(('batch', None))),
      out_specs=heads,
      check_vma=False,
    )
  return attend(query, key, value, segments)


def _attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array,
  window: int | None,
  interpret: bool,
) -> jax.Array:
  length, heads, width = query.shape[1:]
  block = next(size for size in _BLOCKS if length % size == 0)
  sizes = kernels.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  shape = (length, length)
  causal = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
  mask = masks.MultiHeadMask([causal] * heads)
  kernel = kernels.make_splash_mha_single_device(
    mask, block_sizes=sizes, residual_checkpoint_name='attention', interpret=interpret
  )
  heads_first = lambda x: x.swapaxes(1, 2)
  out = jax.vmap(kernel)(
    heads_first(query * width**-0.5),
    heads_first(key),
    heads_first(value),
    kernels.SegmentIds(segments, segments),
  )
  return heads_first(out).astype(query.dtype)
