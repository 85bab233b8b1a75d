"""Fingerprints of arrays and a seal of JSON values, to notice a checkpoint that changed on disk.

The fingerprint of an array is the sum, modulo 2^32, of the bits of every element (as uint32) times
an odd weight that depends on its position. A sum has no order: every device sums what it holds and
nothing is gathered, so the result is the same on any mesh. An odd weight loses no bit, so a single
changed element is always noticed. A library's hash (xxhash, as weight mixing uses) needs the bytes
in order on one host.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.sharding import NamedSharding, PartitionSpec

from sphinx_jax.parallel import placement

SEAL = 'seal'
_ODD = 0x9E3779B1  # 2^32 / golden ratio: neighbors get weights that are far apart.


def fingerprint_tree(tree: Any) -> dict[str, str]:
  """Returns path -> dtype, shape and fingerprint of every leaf, 'float32[16,8] 5d0c1f7a'."""
  paths, leaves = _flatten(tree)
  # On accelerators all computations start before the first result is read.
  sums = [
    placement.block_on_cpu(_compiled_checksum(_replicated_like(leaf))(leaf)) for leaf in leaves
  ]
  return {
    path: f'{_describe(leaf)} {int(checksum):08x}'
    for path, leaf, checksum in zip(paths, leaves, sums)
  }


def shapes(tree: Any) -> dict[str, str]:
  """Returns path -> dtype and shape of every leaf: the first word of its fingerprint."""
  paths, leaves = _flatten(tree)
  return {path: _describe(leaf) for path, leaf in zip(paths, leaves)}


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
  """Returns JSON-able values together with their hash."""
  return {**meta, SEAL: _hash(meta)}


def is_sealed(meta: Mapping[str, Any]) -> bool:
  """Whether the values are those that were sealed."""
  return meta.get(SEAL) == _hash({name: value for name, value in meta.items() if name != SEAL})


def _flatten(tree: Any) -> tuple[list[str], list[Any]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
  return paths, [leaf for _, leaf in leaves]


def _describe(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype).name}[{",".join(map(str, leaf.shape))}]'


def _replicated_like(leaf: Any) -> NamedSharding | None:
  """Returns the replicated sharding on the leaf's mesh, or None if it has no mesh."""
  sharding = getattr(leaf, 'sharding', None)
  if not isinstance(sharding, NamedSharding):
    return None
  return NamedSharding(sharding.mesh, PartitionSpec())


@functools.cache
def _compiled_checksum(out_sharding: NamedSharding | None) -> Callable[[jax.Array], jax.Array]:
  # One small program per shape, which parameters and moments share.
  return jax.jit(
    _checksum, out_shardings=out_sharding, compiler_options=placement.fast_compile_options()
  )


def _checksum(leaf: jax.Array) -> jax.Array:
  """Returns the weighted sum of a leaf's bits, uint32[]."""
  position = jnp.zeros(leaf.shape, jnp.uint32)
  for axis, size in enumerate(leaf.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    position = position * jnp.uint32(size) + index
  numbers = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
  unsigned = f'uint{8 * leaf.dtype.itemsize}'
  bits = jax.lax.bitcast_convert_type(numbers, unsigned).astype(jnp.uint32)
  weight = position * jnp.uint32(2 * _ODD & 0xFFFFFFFF) | 1
  return jnp.sum(bits * weight, dtype=jnp.uint32)


def _hash(meta: Mapping[str, Any]) -> str:
  return xxhash.xxh3_64_hexdigest(json.dumps(meta, sort_keys=True).encode())
