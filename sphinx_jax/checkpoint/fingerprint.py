"""One integer for the bits of every array, the same on any mesh, so that a checkpoint that rotted on disk is noticed.

The bits of each element, as uint32, times an odd weight that depends on its place, summed modulo 2^32. Sums have no order:
every device adds up what it holds and nothing is gathered. An odd weight loses no bit, so one changed element is always
noticed. Hashes of a library (xxhash, as weight mixing takes) need the bytes in order, on one host.
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
_ODD = 0x9E3779B1  # 2^32 / golden ratio; neighbours get weights that are far apart.


def of(tree: Any) -> dict[str, str]:
  """Path of every leaf -> dtype, shape and the integer in hexadecimal, such as 'float32[16,8] 5d0c1f7a'."""
  paths, leaves = _leaves(tree)
  return {
    path: f'{describe(leaf)} {number:08x}'
    for path, leaf, number in zip(paths, leaves, _numbers(leaves))
  }


def shapes(tree: Any) -> dict[str, str]:
  """Path of every leaf (array or ShapeDtypeStruct) -> dtype and shape: what `of` begins with."""
  return dict(zip(_leaves(tree)[0], map(describe, _leaves(tree)[1])))


def describe(leaf: Any) -> str:
  """Dtype and shape."""
  return f'{np.dtype(leaf.dtype).name}[{",".join(map(str, leaf.shape))}]'


def _leaves(tree: Any) -> tuple[list[str], list]:
  found = jax.tree_util.tree_leaves_with_path(tree)
  return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in found], [
    leaf for _, leaf in found
  ]


def _numbers(leaves: list) -> list[int]:
  """Of each leaf; on accelerators all are sent off before the first is read."""
  return [
    int(number)
    for number in [placement.settled(_compiled(_everywhere(leaf))(leaf)) for leaf in leaves]
  ]


def _everywhere(leaf: Any) -> NamedSharding | None:
  layout = getattr(leaf, 'sharding', None)
  return NamedSharding(layout.mesh, PartitionSpec()) if isinstance(layout, NamedSharding) else None


@functools.cache
def _compiled(layout: NamedSharding | None) -> Callable:
  # One small program for each shape: parameters and moments share them.
  return jax.jit(_number, out_shardings=layout, compiler_options=placement.quick_options())


def _number(leaf: jax.Array) -> jax.Array:
  """uint32[]"""
  place = jnp.zeros(leaf.shape, jnp.uint32)
  for axis, size in enumerate(leaf.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
  bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
  bits = jax.lax.bitcast_convert_type(bits, f'uint{8 * leaf.dtype.itemsize}').astype(jnp.uint32)
  return jnp.sum(bits * (place * jnp.uint32(2 * _ODD & 0xFFFFFFFF) | 1), dtype=jnp.uint32)


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
  """JSON-able values with their own hash, so that a changed digit is noticed."""
  return {**meta, SEAL: _hash(meta)}


def is_sealed(meta: Mapping[str, Any]) -> bool:
  """Whether the values are those that were sealed."""
  return meta.get(SEAL) == _hash({name: value for name, value in meta.items() if name != SEAL})


def _hash(meta: Mapping[str, Any]) -> str:
  return xxhash.xxh3_64_hexdigest(json.dumps(meta, sort_keys=True).encode())
