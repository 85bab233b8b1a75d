"""Batches on a mesh: rows are split over `data` and `fsdp`, and every process brings only its own rows."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sphinx_jax.core import errors
from sphinx_jax.parallel import rules


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of every field of a batch: its first dimension (B) over the mesh."""
  return NamedSharding(mesh, rules.partition(('batch',)))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, rules.partition(()))


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
  """Fixes how a value lies on the mesh in context while it is computed with.

  Without a mesh, or with one device, it does nothing.

  Args:
    x: any array under `jax.jit`: an activation, or a parameter, which is put together here.
    names: of its dimensions, as in `rules.RULES`. A dimension need not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, rules.partition(names, at_work=True))


def on_mesh_of(tree: Any, function: Callable) -> Callable:
  """A function to give to `jax.jit`, which `constrain` then knows the mesh of: the one that a tree's arrays lie on, if any."""
  meshes = [
    leaf.sharding.mesh
    for leaf in jax.tree.leaves(tree)
    if isinstance(getattr(leaf, 'sharding', None), NamedSharding)
  ]
  if not meshes:
    return function

  @functools.wraps(function)
  def traced(*args: Any, **options: Any) -> Any:
    with jax.sharding.use_abstract_mesh(meshes[0].abstract_mesh):
      return function(*args, **options)

  return traced


def settled(result: Any) -> Any:
  """A result of one of several independent programs with collectives.

  On accelerators they are all sent off. CPU devices share a few threads, and those that wait in one program for others
  can take all of them from the next, for good: there each is waited for.
  """
  return jax.block_until_ready(result) if jax.default_backend() == 'cpu' else result


def quick_options() -> dict[str, Any] | None:
  """Compiler options of a small program that runs once: XLA:CPU would optimise it for longer than it runs."""
  quick = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  return quick if jax.default_backend() == 'cpu' else None


def check_rows(rows: int, accumulate: int, mesh: Mesh) -> None:
  """Refuses a batch whose rows do not divide into microbatches, or these over the mesh.

  Raises:
    SphinxError: naming rows, microbatches and mesh.
  """
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % (accumulate * ways):
    raise errors.make(
      'batch.size',
      f'{rows}',
      f'a multiple of optimizer.accumulate {accumulate} x mesh.data*fsdp {ways}',
      'change batch.size, optimizer.accumulate or the mesh',
    )


def put(batch: Mapping[str, Any], sharding: NamedSharding) -> dict[str, jax.Array]:
  """Host arrays -> global arrays; in a run of several processes each gives its own rows."""
  return {
    name: jax.make_array_from_process_local_data(sharding, field) for name, field in batch.items()
  }
