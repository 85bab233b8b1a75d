"""Splash attention, Pallas' blockwise kernel for TPU: scores never leave the chip, and blocks that nothing sees are skipped."""

import functools
from collections.abc import Sequence

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
  splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec

from sphinx_jax.core import errors
from sphinx_jax.parallel import rules

_LANES = 128  # of a TPU's vector registers: positions and head width come in multiples of it
_BLOCKS = (512, 256, 128)  # positions of a block, the largest that divides is taken


def fits(shape: Sequence[int]) -> bool:
  """Whether the kernel takes queries of this shape [B,T,H,C]."""
  return shape[1] % _LANES == 0 and shape[3] % _LANES == 0


def splash_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, interpret: bool = False
) -> jax.Array:
  """Causal attention within the segments of packed rows, each device with its own rows and heads.

  Args:
    query: [B,T,H,C].
    key: [B,T,K,C].
    value: [B,T,K,C].
    segments: int32[B,T].
    interpret: runs the kernel without a TPU, slowly, for tests.

  Returns:
    [B,T,H,C] in the dtype of the query.

  Raises:
    SphinxError: positions or a head width that are not multiples of 128.
  """
  if not fits(query.shape):
    raise errors.make(
      'splash attention',
      f'{query.shape[1]} positions and heads of {query.shape[3]}',
      f'multiples of {_LANES}',
      'change batch.seq_len, or --config.model.attention=auto',
    )
  attend = functools.partial(_attend, interpret=interpret)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    heads, kv_heads = (
      rules.partition(('batch', None, name, None), at_work=True) for name in ('heads', 'kv_heads')
    )
    rows: PartitionSpec = rules.partition(('batch', None))
    attend = jax.shard_map(
      attend,
      mesh=mesh,
      in_specs=(heads, kv_heads, kv_heads, rows),
      out_specs=heads,
      check_vma=False,
    )
  return attend(query, key, value, segments)


def _attend(
  query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, interpret: bool
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
  mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
  kernel = kernels.make_splash_mha_single_device(
    mask, block_sizes=sizes, residual_checkpoint_name='attention', interpret=interpret
  )
  lead = lambda x: x.swapaxes(1, 2)  # Heads before positions.
  ids = kernels.SegmentIds(segments, segments)
  return lead(jax.vmap(kernel)(lead(query * width**-0.5), lead(key), lead(value), ids)).astype(
    query.dtype
  )
