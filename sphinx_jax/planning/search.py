"""Which mesh, rows and remat a slice runs a config with at its best: estimated for all, compiled for the most promising."""

import itertools
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.models import layers
from sphinx_jax.planning.plan import Plan, Planner, changed
from sphinx_jax.planning.slices import Slice

_DATA, _TENSOR = (1, 2, 4), (1, 2, 4, 8)
_ROWS = (0.5, 1, 2, 4)  # times the config's


def candidates(config: ConfigDict, where: Slice) -> Iterator[dict[str, Any]]:
  """Changes of a config: mesh shapes that fill the slice, rows that divide over them, remat policies."""
  for data, tensor, times, remat in itertools.product(_DATA, _TENSOR, _ROWS, layers.REMAT):
    fsdp, rows = where.devices // (data * tensor), int(config.batch.size * times)
    if (
      data * fsdp * tensor == where.devices
      and rows
      and rows % (data * fsdp * config.optimizer.accumulate) == 0
    ):
      yield {
        'mesh.data': data,
        'mesh.fsdp': fsdp,
        'mesh.tensor': tensor,
        'batch.size': rows,
        'model.remat': remat,
      }


def search(config: ConfigDict, where: Slice, planner: Planner, compiled: int) -> list[Plan]:
  """Plans of all candidates, best first: what fits before what does not, then tokens a second, then headroom.

  Args:
    config: of the run.
    where: the slice.
    planner: see plan.py.
    compiled: how many of the best to compile; those that the compiler lets fit come first.

  Raises:
    SphinxError: no mesh of this slice divides the config's rows and widths.
  """
  plans, refused = [], ''
  for change in Progress(
    list(candidates(config, where)), what=f'layouts of {where.name}', unit='layout'
  ):
    try:
      plans.append(planner.plan(changed(config, change), where, compile_it=False))
    except (
      errors.SphinxError,
      NotImplementedError,
    ) as error:  # JAX's own word for a mesh that does not fit the torus.
      refused = str(error)
  if not plans:
    raise errors.make(
      '--search',
      f'{where.name} and {config.batch.size} rows',
      'a mesh that divides both',
      refused or 'change batch.size or the slice',
    )
  plans.sort(key=_rank)
  best = [
    planner.plan(plan.config, where, compile_it=True)
    for plan in Progress(plans[:compiled], what='compiling', unit='layout')
  ]
  return sorted(best + plans[compiled:], key=_rank)


def _rank(plan: Plan) -> tuple[bool, bool, float, int]:
  return not plan.fits, plan.compiled is None, -plan.roofline.tokens, -plan.headroom
