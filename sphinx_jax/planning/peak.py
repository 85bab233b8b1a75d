"""Peak rate of matrix products: that of a known accelerator, or a measured one."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sphinx_jax.planning.slices import CHIPS

# Text in `device_kind` -> FLOP/s of dense bfloat16 products (float16 on T4 and V100). The first
# text that occurs counts. Sources: slices.py for TPUs, NVIDIA's data sheets for GPUs.
_KINDS = {
  'TPU v4': CHIPS['v4'].flops,
  'TPU v5 lite': CHIPS['v5e'].flops,
  'TPU v5e': CHIPS['v5e'].flops,
  'TPU v5': CHIPS['v5p'].flops,
  'TPU v6': CHIPS['v6e'].flops,
  'B200': 2250e12,
  'H200': 989e12,
  'H100 PCIe': 756e12,
  'H100 NVL': 835e12,
  'H100': 989e12,
  'A100': 312e12,
  'L40S': 362e12,
  'NVIDIA L4': 121e12,
  'V100': 125e12,
  'T4': 65e12,
}
_SIZE, _ROUNDS = 1024, 3


def flops_per_second(devices: Sequence[Any], dtype: str) -> float:
  """The peak of all devices together.

  Args:
    devices: all devices of a mesh, of one kind. The CPU devices of a process share its cores.
    dtype: dtype of the products where they are measured: on a CPU and on unknown accelerators.
  """
  kind = devices[0].device_kind
  known = next((rate for text, rate in _KINDS.items() if text in kind), None)
  if devices[0].platform == 'cpu':
    return _measured(dtype) * len({device.process_index for device in devices})
  return (known or _measured(dtype)) * len(devices)


def _measured(dtype: str) -> float:
  """FLOP/s of the fastest product of square matrices on this process's first device."""
  matrix = jnp.ones((_SIZE, _SIZE), dtype)
  product = jax.jit(jnp.matmul)
  product(matrix, matrix).block_until_ready()
  fastest = float('inf')
  for _ in range(_ROUNDS):
    began = time.perf_counter()
    product(matrix, matrix).block_until_ready()
    fastest = min(fastest, time.perf_counter() - began)
  return 2.0 * _SIZE**3 / fastest
