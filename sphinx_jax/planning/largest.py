"""The largest number of rows that a device computes at a time."""

from ml_collections import ConfigDict

from sphinx_jax.planning.plan import MARGIN, Plan, Planner, changed


def at_once(config: ConfigDict, rows: int, devices: int = 1) -> ConfigDict:
  """Returns the config with batches of that many rows on each device, in one microbatch."""
  return changed(config, {'batch.size': rows * devices, 'optimizer.accumulate': 1})


def rows(plan: Plan, planner: Planner) -> int:
  """Returns how many rows of a plan's config fit into a device at a time; 0 if not even one.

  What one row more needs is estimated, as the difference between two plans of one and two rows.
  The rest is the plan's total, so it is the compiler's if the plan was compiled.

  Args:
    plan: the plan of the config.
    planner: what made it.
  """
  devices = plan.batch_ways
  one, two = (
    planner.plan(at_once(plan.config, count, devices), plan.slice, compile_it=False)
    for count in (1, 2)
  )
  base = plan.headroom if plan.compiled else one.headroom - int(MARGIN * plan.slice.chip.hbm)
  now = plan.config.batch.size // (devices * plan.microbatches) if plan.compiled else 1
  return max(now + base // (two.total - one.total), 0)
