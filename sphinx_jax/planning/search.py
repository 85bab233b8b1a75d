"""Ranks the meshes, batch sizes and remat policies of a config on one slice.

All of them are estimated, and the most promising ones compiled.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.models import layers
from sphinx_jax.planning.plan import Plan, Planner, changed
from sphinx_jax.planning.slices import Slice

_DATA_SIZES = (1, 2, 4)
_TENSOR_SIZES = (1, 2, 4, 8)
_BATCH_FACTORS = (0.5, 1, 2, 4)  # Times the config's batch size.


def candidates(config: ConfigDict, tpu_slice: Slice) -> Iterator[dict[str, Any]]:
  """Yields changes of a config: meshes that fill the slice, batch sizes that divide, remat.

  The axis of experts stays as it is.
  """
  expert = config.mesh.get('expert', 1)
  for data, tensor, factor, remat in itertools.product(
    _DATA_SIZES, _TENSOR_SIZES, _BATCH_FACTORS, layers.REMAT
  ):
    fsdp = tpu_slice.devices // (data * tensor * expert)
    batch_size = int(config.batch.size * factor)
    fills_slice = data * fsdp * tensor * expert == tpu_slice.devices
    if not fills_slice or batch_size == 0:
      continue
    if batch_size % (data * fsdp * expert * max(config.optimizer.accumulate, 1)):
      continue
    yield {
      'mesh.data': data,
      'mesh.fsdp': fsdp,
      'mesh.tensor': tensor,
      'batch.size': batch_size,
      'model.remat': remat,
    }


def search(config: ConfigDict, tpu_slice: Slice, planner: Planner, compile_best: int) -> list[Plan]:
  """Returns the plans of all candidates, best first.

  Plans that fit come first, then those with more tokens per second, then those that recompute less,
  then those with more headroom.

  Args:
    config: the run's config.
    tpu_slice: the slice.
    planner: see plan.py.
    compile_best: number of the best candidates to compile. Those that the compiler accepts come
      first.

  Raises:
    SphinxError: no mesh of this slice divides the config's batch size and widths.
  """
  plans, refusal = [], ''
  changes = list(candidates(config, tpu_slice))
  for change in Progress(changes, what=f'meshes of {tpu_slice.name}', unit='mesh'):
    try:
      plans.append(planner.plan(changed(config, change), tpu_slice, compile_it=False))
    except (errors.SphinxError, NotImplementedError) as error:
      refusal = str(error)  # NotImplementedError: JAX cannot lay this mesh on the torus.
  if not plans:
    raise errors.make(
      '--search',
      f'{tpu_slice.name} and batch.size {config.batch.size}',
      'a mesh that divides both',
      refusal or 'change batch.size or the slice',
    )
  plans.sort(key=_rank)
  compiled = [
    planner.plan(plan.config, tpu_slice, compile_it=True)
    for plan in Progress(plans[:compile_best], what='compiling', unit='mesh')
  ]
  return sorted(compiled + plans[compile_best:], key=_rank)


def _rank(plan: Plan) -> tuple[bool, bool, float, int, int]:
  remat = [*layers.REMAT].index(plan.config.model.remat)
  tokens = -plan.roofline.tokens
  return not plan.fits, plan.compiled is None, tokens, remat, -plan.headroom
