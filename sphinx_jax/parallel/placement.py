"""Placement of batches and activations on the mesh, where `rules.RULES` splits them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sphinx_jax.core import errors
from sphinx_jax.parallel import rules

# Enough for large products, few enough that a device can keep most activations of a large model.
_POSITIONS = 8192


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of every field of a batch: its first dimension (B) is split over the mesh."""
  return NamedSharding(mesh, rules.partition(('batch',)))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, rules.partition(()))


def with_shardings(shapes: Any, shardings_of: Any) -> Any:
  """Adds shardings to a tree of ShapeDtypeStruct."""

  def add(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(add, shapes, shardings_of)


def shardings(tree: Any) -> Any:
  """The shardings of a tree of ShapeDtypeStruct or arrays."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def batch_ways() -> int:
  """The number of devices or groups of devices over which the mesh in context splits a batch."""
  return compute_ways('batch')


def compute_ways(name: str | None) -> int:
  """The number of parts into which the mesh in context splits a dimension during computation."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or name is None:
    return 1
  return rules.ways(name, mesh)


def constrain(x: jax.Array, names: Sequence[str | None], compute: bool = True) -> jax.Array:
  """Fixes the sharding of a value, on the mesh in context.

  Does nothing without a mesh or with one device.

  Args:
    x: any array under `jax.jit`.
    names: names of its dimensions, see `rules.RULES`. A dimension need not divide evenly.
    compute: the sharding during computation, or that in storage.
  """
  if not _is_on_several_devices():
    return x
  return jax.lax.with_sharding_constraint(x, rules.partition(names, compute=compute))


def _is_on_several_devices() -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def gather(weight: jax.Array, names: Sequence[str | None]) -> jax.Array:
  """All-gathers a parameter for computation, and scatters its gradient to where it is stored.

  The transpose of `constrain` alone would sum the whole gradient on every device (an all-reduce)
  before each device keeps its part: twice the traffic of a reduce-scatter.

  Args:
    weight: as it is stored, under `jax.jit`.
    names: names of its dimensions, see `rules.RULES`.
  """
  if len(names) == 1 or not _is_on_several_devices():  # A vector is stored whole.
    return constrain(weight, names)

  @jax.custom_vjp
  def gathered(weight: jax.Array) -> jax.Array:
    return constrain(weight, names)

  def scatter(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(gradient, names, compute=False),)

  gathered.defvjp(lambda weight: (gathered(weight), None), scatter)
  return gathered(weight)


def only_device(tree: Any) -> jax.Device | None:
  """The device that all arrays of a tree are on, as arrays of numpy will be; None: several."""
  default = jax.local_devices()[:1]
  devices = set()
  for leaf in jax.tree.leaves(tree):
    devices.update(leaf.devices() if isinstance(leaf, jax.Array) else default)
  return devices.pop() if len(devices) == 1 else None


def is_on_one_cpu(tree: Any) -> bool:
  """Whether all arrays of a tree are, or as arrays of numpy will be, on one CPU device."""
  device = only_device(tree)
  return device is not None and device.platform == 'cpu'


def mesh_of(tree: Any) -> Mesh | None:
  """The mesh of a tree's arrays; None: no array of the tree has a NamedSharding."""
  meshes = (
    leaf.sharding.mesh
    for leaf in jax.tree.leaves(tree)
    if isinstance(getattr(leaf, 'sharding', None), NamedSharding)
  )
  return next(meshes, None)


def on_mesh_of(tree: Any, function: Callable) -> Callable:
  """Wraps a function for `jax.jit` so that `constrain` inside it uses the mesh of a tree's arrays.

  Returns the function unchanged if they have none.
  """
  mesh = mesh_of(tree)
  if mesh is None:
    return function

  @functools.wraps(function)
  def traced(*args: Any, **options: Any) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args, **options)

  return traced


def block_on_cpu(result: Any) -> Any:
  """Blocks until a pytree of arrays is computed, on CPU only. Returns it.

  Programs with collectives that run at the same time can deadlock on CPU, where all devices share
  one pool of threads. On accelerators this is a no-op.
  """
  return jax.block_until_ready(result) if jax.default_backend() == 'cpu' else result


def fast_compile_options() -> dict[str, Any] | None:
  """Compiler options for small programs that run once: XLA:CPU optimizes longer than they run."""
  if jax.default_backend() != 'cpu':
    return None
  return {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def microbatches(rows: int, seq_len: int, accumulate: int, mesh: Mesh) -> int:
  """The number of microbatches of a batch, which divides over the mesh.

  Args:
    rows: batch size.
    seq_len: positions of a row.
    accumulate: the number; -1: the least with which a device has one row, or `_POSITIONS` positions
      in several, at a time.
    mesh: from `mesh.make_mesh`.

  Raises:
    SphinxError: they do not divide.
  """
  ways = rules.ways('batch', mesh)
  if rows % (max(accumulate, 1) * ways):
    microbatches = '' if accumulate == -1 else f'optimizer.accumulate {accumulate} x '
    raise errors.make(
      'batch.size',
      f'{rows}',
      f'a multiple of {microbatches}mesh.data*fsdp*expert {ways}',
      'change batch.size, optimizer.accumulate or the mesh',
    )
  if accumulate != -1:
    return accumulate
  of_device = rows // ways
  return next(
    number
    for number in range(1, of_device + 1)
    if of_device % number == 0 and of_device // number <= max(_POSITIONS // seq_len, 1)
  )


def put(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
  """Puts a batch onto the devices as global arrays. Each process passes its own rows only."""
  return {
    name: jax.make_array_from_process_local_data(sharding, field) for name, field in batch.items()
  }
