"""From the names of a parameter's dimensions to its layout on the mesh: one short table.

Models name every dimension where the parameter is made. `tensor` splits the arithmetic as Megatron does (heads and
hidden features), `fsdp` splits the model width of every matrix, so that each is whole on no device. A layer's matrices are
put together over `fsdp` when the layer is computed; without being told, the partitioner would rather move activations
between devices, which are larger.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import log

# Name of a dimension -> the mesh axes that split it at rest, and those that still do when it is computed with.
# Encoders divide their views over all devices, so their parameters (and the projections') are computed with whole.
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  'batch': (('data', 'fsdp'),) * 2,
  'views': (('data', 'fsdp', 'tensor'),) * 2,  # of all rows' images, in the encoders
  'layers': ((), ()),  # the leading axis of scanned layers
  'vocab': (('tensor',), ('tensor',)),
  'lookup': (
    ('fsdp',),
    ('fsdp',),
  ),  # width of the embedding table: each device looks up its channels
  'lookup_rows': (('data',), ('data',)),  # of all rows, meanwhile
  'embed': (('fsdp',), ()),  # width of the language model
  'heads': (('tensor',), ('tensor',)),
  'kv_heads': (('tensor',), ('tensor',)),
  'ffn': (('tensor',), ('tensor',)),  # hidden features of a feed-forward layer
  'visual': (('tensor',), ()),  # channels that the projections read
  'encoder_embed': (('fsdp',), ()),
  'encoder_heads': (('tensor',), ()),
  'encoder_ffn': (('tensor',), ()),
  'encoder_out': (('tensor',), ()),
}

LARGE = 2**20  # bytes; a larger leaf that is on every device is worth a line in the log


def partition(
  names: Sequence[str | None], path: str = 'array', at_work: bool = False
) -> PartitionSpec:
  """The partition of an array whose dimensions have these names (None: never split), at rest or at work.

  Raises:
    SphinxError: a name that is not in the table, or a mesh axis that would split two dimensions.
  """
  parts = []
  for name in names:
    if name is not None and name not in RULES:
      raise errors.unknown(f"dimension of '{path}'", name, RULES)
    parts.append(_axes(name, at_work))
  used = [axis for part in parts for axis in part]
  for axis in used:
    if used.count(axis) > 1:
      raise errors.make(
        f"layout of '{path}'",
        f'dimensions {tuple(names)} that both use mesh axis {axis!r}',
        'each mesh axis once',
        'rename one of the dimensions where the parameter is made',
      )
  return PartitionSpec(*[part or None for part in parts])


def _axes(name: str | None, at_work: bool = False) -> tuple[str, ...]:
  return () if name is None else RULES[name][at_work]


def shardings(logical_axes: Mapping, abstract: Mapping, mesh: Mesh) -> dict:
  """The layout of every leaf of a parameter tree.

  Args:
    logical_axes: tree of tuples of dimension names.
    abstract: the tree of shapes (ShapeDtypeStruct) of the same paths.
    mesh: from `make_mesh`.

  Returns:
    The same tree of NamedSharding. Vectors are on every device: to put one together would take longer than its bytes are
    worth. Leaves over 1 MiB that end up on every device of a larger mesh are named in the log.

  Raises:
    SphinxError: trees that differ; a mesh axis used twice; a dimension that the mesh does not divide (path, shape, axis).
  """
  axes, shapes = trees.flatten(logical_axes), trees.flatten(abstract)
  if set(axes) != set(shapes):
    raise errors.make(
      'logical axes',
      f'other paths: {sorted(set(axes) ^ set(shapes))[:5]}',
      'one entry for each parameter',
      'name the dimensions where the parameter is made',
    )
  layouts = {
    path: NamedSharding(mesh, _checked(axes[path], leaf, path, mesh))
    for path, leaf in shapes.items()
  }
  if mesh.size > 1:
    _list_replicated(layouts, shapes)
  return trees.unflatten(layouts)


def _checked(
  names: Sequence[str | None], leaf: jax.ShapeDtypeStruct, path: str, mesh: Mesh
) -> PartitionSpec:
  if len(names) != len(leaf.shape):
    raise errors.make(
      f"layout of '{path}'",
      f'{len(names)} names {tuple(names)}',
      f'{len(leaf.shape)} for shape {leaf.shape}',
      'name every dimension',
    )
  spec = partition(names, path)
  for size, name in zip(leaf.shape, names):
    split_by = _axes(name)
    ways = math.prod(mesh.shape[axis] for axis in split_by)
    if size % ways:
      raise errors.make(
        f"layout of '{path}'",
        f"shape {leaf.shape} whose '{name}' {size} is not divided by mesh axis "
        f'{"*".join(split_by)} of {ways}',
        f'a multiple of {ways}',
        'change the mesh or the model width',
      )
  is_vector = len([name for name in names if name != 'layers']) == 1
  return PartitionSpec() if is_vector else spec


def _list_replicated(
  layouts: Mapping[str, NamedSharding], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  for path, layout in layouts.items():
    size = math.prod(shapes[path].shape) * np.dtype(shapes[path].dtype).itemsize
    if layout.is_fully_replicated and size > LARGE:
      log.info('on every device: %s %s, %.1f MiB', path, tuple(shapes[path].shape), size / 2**20)
