"""Adapters (LoRA, arXiv 2106.09685): small matrices that are trained beside frozen ones.

An adapter of a layer with a kernel [in,...] is 'lora_a' [in,r], 'lora_b' [r,...] and 'lora_scale'
[]. It adds lora_scale * lora_a @ lora_b to the kernel. Scanned layers and experts have them
stacked, like all parameters.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors, trees

KERNEL = 'kernel'
A, B, SCALE = LEAVES = ('lora_a', 'lora_b', 'lora_scale')
STACKS = ('layers', 'experts')  # Logical names of the first dimensions of stacks of matrices.
NONE = 'none'  # As a target: no layer has an adapter.


class Adapted(NamedTuple):
  """A matrix [in,out] with an adapter that is not added to it: kernel + a @ b.

  Attributes:
    kernel: [in,out].
    a: [in,r].
    b: [r,out], times the factor of the adapter.
  """

  kernel: jax.Array
  a: jax.Array
  b: jax.Array


Blocks = tuple[jax.Array | Adapted, ...]  # Of the columns of a matrix.


def is_adapter(path: str) -> bool:
  """Whether a parameter belongs to an adapter, by its path."""
  return path.rpartition('/')[2] in LEAVES


def stack_of(names: Sequence[str | None]) -> int:
  """The number of dimensions in front of a matrix, by the names of all of them."""
  return next(i for i, name in enumerate(names) if name not in STACKS)


def matrices(logical_axes: Mapping) -> list[str]:
  """Paths of the layers with a matrix that adapters and quantization apply to (`layers.Dense`).

  Args:
    logical_axes: tree of `families.logical_axes`. Kernels of patch embeddings, whose first
      dimension has no name, are left out.
  """
  found = []
  for path, names in trees.flatten(logical_axes).items():
    *layer, leaf = path.split('/')
    if leaf == KERNEL and names[stack_of(names)] is not None:
      found.append('/'.join(layer))
  return found


def ranks(
  layers: Sequence[str], target: str, rank: int, patterns: Sequence[tuple[str, int]]
) -> dict[str, int]:
  """The rank of every layer that gets an adapter.

  Args:
    layers: paths of all layers with a matrix.
    target: regex of the whole paths of those with an adapter; 'none': no layer.
    rank: of their adapters.
    patterns: pairs (regex, rank) in place of `rank`; the first match decides. 0: no adapter.

  Raises:
    SphinxError: a pattern matches no layer.
  """
  if target == NONE:
    return {}
  trees.check_rules('lora.target', [(target, rank)], layers)
  chosen = [layer for layer in layers if re.fullmatch(target, layer)]
  if patterns:
    trees.check_rules('lora.ranks', patterns, chosen)
  rules = [*patterns, ('.*', rank)]
  found = {layer: trees.first_match(rules, layer) for layer in chosen}
  return {layer: number for layer, number in found.items() if number}


def extend(shapes: Mapping, logical_axes: Mapping, ranks: Mapping[str, int]) -> tuple[dict, dict]:
  """Adds adapters in float32 to a tree of shapes and to that of the dimensions' names."""
  shapes, axes = trees.flatten(shapes), trees.flatten(logical_axes)
  for layer, rank in ranks.items():
    names = axes[f'{layer}/{KERNEL}']
    stack = stack_of(names)
    shape = shapes[f'{layer}/{KERNEL}'].shape
    if rank > min(shape[stack], math.prod(shape[stack + 1 :])):
      raise errors.make(
        f"lora of '{layer}'",
        f'rank {rank}',
        f'at most the smaller side of its matrix {list(shape[stack:])}',
        'lower lora.rank or leave the layer out of lora.target',
      )
    new = {
      A: ((*shape[: stack + 1], rank), (*names[: stack + 1], None)),
      B: ((*shape[:stack], rank, *shape[stack + 1 :]), (*names[:stack], None, *names[stack + 1 :])),
      SCALE: (shape[:stack], names[:stack]),
    }
    for leaf, (of_leaf, of_names) in new.items():
      shapes[f'{layer}/{leaf}'] = jax.ShapeDtypeStruct(of_leaf, jnp.float32)
      axes[f'{layer}/{leaf}'] = tuple(of_names)
  return trees.unflatten(shapes), trees.unflatten(axes)


def fresh(shapes: Mapping, scales: Mapping[str, float], rng: jax.Array) -> dict[str, jax.Array]:
  """First values of adapters: a is random, b is 0, so that they change nothing.

  Args:
    shapes: tree of `extend`.
    scales: path of a layer -> factor of its adapter.
    rng: random key.

  Returns:
    Path -> array.
  """
  flat, arrays = trees.flatten(shapes), {}
  for number, (layer, scale) in enumerate(scales.items()):
    a, b, factor = (flat[f'{layer}/{leaf}'] for leaf in LEAVES)
    # As PEFT: uniform with the deviation of a kernel that has 1 / (3 * in) as its variance.
    bound = a.shape[-2] ** -0.5
    key = jax.random.fold_in(rng, number)
    arrays[f'{layer}/{A}'] = jax.random.uniform(key, a.shape, a.dtype, -bound, bound)
    arrays[f'{layer}/{B}'] = jnp.zeros(b.shape, b.dtype)
    arrays[f'{layer}/{SCALE}'] = jnp.full(factor.shape, scale, factor.dtype)
  return arrays


def delta(leaves: Mapping[str, jax.Array]) -> jax.Array:
  """What an adapter adds to a kernel, float32[in,...]."""
  a, b, scale = (leaves[name].astype(jnp.float32) for name in LEAVES)
  return scale * jnp.tensordot(a, b, 1, precision='highest')
