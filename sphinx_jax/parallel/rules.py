"""The sharding rules: one short table from the names of dimensions to axes of the mesh.

Models name every dimension where a parameter is created. `tensor` splits the arithmetic as Megatron
does (heads and feed-forward features). `fsdp` splits the model width of every matrix, so that no
device stores a whole one. The matrices of a layer are all-gathered over `fsdp` when the layer is
computed. This is stated explicitly because the partitioner would rather move activations between
devices, and these are larger. `expert` splits the experts of a mixture, which stay where they are,
and everything else as `fsdp` does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import log


class MeshAxes(NamedTuple):
  """The mesh axes that split a dimension of an array in storage, and those during computation."""

  storage: tuple[str, ...]
  compute: tuple[str, ...]


def _always(*axes: str) -> MeshAxes:
  return MeshAxes(axes, axes)


def _storage_only(*axes: str) -> MeshAxes:
  return MeshAxes(axes, ())


# Encoders split their views over all devices, so their parameters, and those of the projections,
# are whole during computation.
RULES: dict[str, MeshAxes] = {
  'batch': _always('data', 'fsdp', 'expert'),
  'views': _always('data', 'fsdp', 'expert', 'tensor'),  # the views of all images, in the encoders
  'layers': _always(),  # leading axis of scanned layers
  'patches': _always('tensor'),  # packed patches of the images of a row
  'vocab': _always('tensor'),
  # Width of the embedding table: each device looks up its channels.
  'lookup': _always('fsdp', 'expert'),
  'lookup_rows': _always('data'),  # the batch during this lookup
  'embed': _storage_only('fsdp', 'expert'),  # width of the language model
  'heads': _always('tensor'),
  'kv_heads': _always('tensor'),
  'ffn': _always('tensor'),  # hidden features of a feed-forward layer
  'experts': _always('expert'),
  'expert_embed': _storage_only('fsdp'),  # width of the language model, of an expert
  'visual': _storage_only('tensor'),  # channels that the projections read
  'encoder_embed': _storage_only('fsdp', 'expert'),
  'encoder_heads': _storage_only('tensor'),
  'encoder_ffn': _storage_only('tensor'),
  'encoder_out': _storage_only('tensor'),
}

# Stored whole if the mesh does not divide it; its arithmetic is split all the same. Tokens that are
# added to a tokenizer leave no round number, such as 32003.
UNEVEN = ('vocab',)
# So are these leaves: the scales of a quantized matrix, one for many of its rows.
UNEVEN_LEAVES = ('kernel_scale',)

LARGE = 2**20  # Bytes. Larger leaves that are replicated are logged.


def partition(
  names: Sequence[str | None], path: str = 'array', compute: bool = False
) -> PartitionSpec:
  """The partition of an array from the names of its dimensions.

  Args:
    names: a name of RULES for each dimension; None for one that is never split.
    path: path of the array, for errors.
    compute: the partition during computation, instead of the one in storage.

  Raises:
    SphinxError: a name is not in the table, or one mesh axis would split two dimensions.
  """
  parts = []
  for name in names:
    if name is not None and name not in RULES:
      raise errors.unknown(f"dimension of '{path}'", name, RULES)
    parts.append(_axes(name, compute))
  used = [axis for part in parts for axis in part]
  for axis in used:
    if used.count(axis) > 1:
      raise errors.make(
        f"sharding of '{path}'",
        f'dimensions {tuple(names)} that both use mesh axis {axis!r}',
        'each mesh axis once',
        'rename one of the dimensions where the parameter is created',
      )
  return PartitionSpec(*[part or None for part in parts])


def _axes(name: str | None, compute: bool = False) -> tuple[str, ...]:
  if name is None:
    return ()
  return RULES[name].compute if compute else RULES[name].storage


def ways(name: str, mesh: Mesh | jax.sharding.AbstractMesh) -> int:
  """The number of parts into which a mesh splits a dimension during computation."""
  return math.prod(mesh.shape[axis] for axis in RULES[name].compute)


def storage_ways(name: str, mesh: Mesh) -> int:
  """The number of parts into which a mesh splits a dimension in storage."""
  return math.prod(mesh.shape[axis] for axis in RULES[name].storage)


def shardings(logical_axes: Mapping, abstract: Mapping, mesh: Mesh) -> dict:
  """The storage sharding of every leaf of a parameter tree.

  Vectors are replicated: all-gathering them costs more than it saves. Leaves over 1 MiB that are
  replicated on several devices are logged.

  Args:
    logical_axes: tree of tuples of dimension names.
    abstract: tree of ShapeDtypeStruct with the same paths.
    mesh: from `mesh.make_mesh`.

  Returns:
    The same tree of NamedSharding.

  Raises:
    SphinxError: the trees differ, a mesh axis is used twice, or the mesh does not divide a
      dimension. The message has path, shape and axis.
  """
  axes, shapes = trees.flatten(logical_axes), trees.flatten(abstract)
  if set(axes) != set(shapes):
    raise errors.make(
      'logical axes',
      f'other paths: {sorted(set(axes) ^ set(shapes))[:5]}',
      'one entry for each parameter',
      'name the dimensions where the parameter is created',
    )
  flat = {
    path: NamedSharding(mesh, _checked_partition(axes[path], leaf, path, mesh))
    for path, leaf in shapes.items()
  }
  if mesh.size > 1:
    _log_replicated(flat, shapes)
  return trees.unflatten(flat)


def _checked_partition(
  names: Sequence[str | None], leaf: jax.ShapeDtypeStruct, path: str, mesh: Mesh
) -> PartitionSpec:
  if len(names) != len(leaf.shape):
    raise errors.make(
      f"sharding of '{path}'",
      f'{len(names)} names {tuple(names)}',
      f'{len(leaf.shape)} for shape {leaf.shape}',
      'name every dimension',
    )
  spec = [*partition(names, path)]
  for i, (size, name) in enumerate(zip(leaf.shape, names)):
    axes = _axes(name)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if size % ways and (name in UNEVEN or path.endswith(UNEVEN_LEAVES)):
      spec[i] = None
    elif size % ways:
      raise errors.make(
        f"sharding of '{path}'",
        f"shape {leaf.shape} whose '{name}' {size} is not divided by mesh axis "
        f'{"*".join(axis for axis in axes if mesh.shape[axis] > 1)} of {ways}',
        f'a multiple of {ways}',
        'change the mesh or the model width',
      )
  is_vector = len([name for name in names if name != 'layers']) == 1
  return PartitionSpec() if is_vector else PartitionSpec(*spec)


def _log_replicated(
  flat: Mapping[str, NamedSharding], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  for path, sharding in flat.items():
    size = math.prod(shapes[path].shape) * np.dtype(shapes[path].dtype).itemsize
    if sharding.is_fully_replicated and size > LARGE:
      log.info('replicated: %s %s, %.1f MiB', path, tuple(shapes[path].shape), size / 2**20)
