"""The table "Will it fit": the smallest slice of each kind that each shipped config fits on."""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import config as config_lib, errors, files
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.models import layers
from sphinx_jax.planning import slices
from sphinx_jax.planning.plan import Plan, Planner, changed

# Every config is compiled for slices of this kind; slices of the other kinds are estimated.
COMPILED_KIND = 'v5p'
_GIB = 2**30


def fill(
  runs: Mapping[str, ConfigDict], planner: Planner, output: pathlib.Path | None, compiler: bool
) -> list[dict[str, Any]]:
  """Finds the smallest slice of every kind for every run.

  Args:
    runs: label ('stage2.py:13b,1k') -> config.
    planner: see plan.py.
    output: JSON file of the rows, written after each row. Its rows of the same configs are reused.
    compiler: whether libtpu is installed; without it everything is estimated.

  Returns:
    Rows with the keys `run`, `kind`, `slice` (None if none is large enough), `accelerator`,
    `headroom`, `total` and `estimated` (bytes on a device), `tokens` (per step), `remat`,
    `microbatches`, `mfu` and `days` (bounds), `how` ('compiled' or 'estimated'), `seconds` (of
    compilation) and `config` (a hash).
  """
  done = {(row['run'], row['kind'], row['config']): row for row in _read(output)}
  kinds = sorted(slices.CHIPS, key=lambda kind: kind == COMPILED_KIND)  # The slow kind is last.
  cells = [(run, kind) for kind in kinds for run in runs]
  rows = []
  for run, kind in Progress(cells, what='will it fit', unit='cell'):
    config = runs[run]
    config_hash = hashlib.sha256(config_lib.to_json(config).encode()).hexdigest()[:12]
    row = done.get((run, kind, config_hash))
    if row is None:
      plan = smallest(config, kind, planner, compiler and kind == COMPILED_KIND)
      row = {'run': run, 'kind': kind, 'config': config_hash, **_columns(plan)}
    rows.append(row)
    if output:
      files.write_json(output, rows, indent=1)
  return rows


def smallest(config: ConfigDict, kind: str, planner: Planner, compiler: bool) -> Plan | None:
  """Returns the plan for the smallest slice of a kind that fits, or None.

  The remat policy is the config's, which is made for `COMPILED_KIND`. On chips of another kind,
  which have less memory, it may be one that recomputes more. If a compiler is available, it
  verifies that the run fits.
  """
  policies = [*layers.REMAT]
  policies = policies[policies.index(config.model.remat) :]
  for tpu_slice in slices.slices(kind):
    for remat in policies[:1] if kind == COMPILED_KIND else policies:
      try:
        plan = planner.plan(changed(config, {'model.remat': remat}), tpu_slice, compile_it=False)
      except errors.SphinxError:  # The mesh does not divide the batch or the model's widths.
        continue
      if plan.fits and compiler:
        log.info('compiling %s for %s', config.name, tpu_slice.name)
        plan = planner.plan(plan.config, tpu_slice, compile_it=True, details=False)
      if plan.fits:
        return plan
  return None


def _columns(plan: Plan | None) -> dict[str, Any]:
  if plan is None:
    return {'slice': None}
  return {
    'slice': plan.slice.name,
    'accelerator': plan.slice.accelerator,
    'headroom': plan.headroom,
    'total': plan.total,
    'estimated': plan.estimated,
    'tokens': plan.config.batch.size * plan.config.batch.seq_len,
    'remat': plan.config.model.remat,
    'microbatches': plan.microbatches,
    'mfu': plan.roofline.mfu,
    'days': plan.roofline.days,
    'how': 'compiled' if plan.compiled else 'estimated',
    'seconds': plan.compiled.seconds if plan.compiled else 0,
  }


def _read(output: pathlib.Path | None) -> list[dict[str, Any]]:
  rows = files.read_json(output) if output and output.exists() else []
  keys = {'run', 'kind', 'config', 'slice'}
  if not isinstance(rows, list) or not all(
    isinstance(row, dict) and keys <= set(row) for row in rows
  ):
    raise errors.make(
      f"output '{output}'",
      'a JSON file of something else',
      'rows of an earlier call',
      'give another --output',
    )
  return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the rows of `fill` as a Markdown table: one line per run, one column per kind."""
  lines = [
    '| run | tokens per step | ' + ' | '.join(slices.CHIPS) + ' |',
    '|---|---|' + '---|' * len(slices.CHIPS),
  ]
  for run in dict.fromkeys(row['run'] for row in rows):
    cells = {row['kind']: row for row in rows if row['run'] == run}
    tokens = min((row['tokens'] for row in cells.values() if row['slice']), default=0)
    columns = [_cell(cells[kind]) for kind in slices.CHIPS]
    lines.append(f'| {run} | {tokens:,} | ' + ' | '.join(columns) + ' |')
  legend = (
    'A cell: smallest slice that fits (accelerator type), GiB of HBM left on each device, '
    'model.remat, and the bound on MFU. '
    '**Bold** is compiled by libtpu for that slice, the rest is estimated.'
  )
  return '\n'.join([*lines, '', legend])


def _cell(row: Mapping[str, Any]) -> str:
  if not row['slice']:
    return 'none'
  shape = row['slice'].partition(':')[2]
  cell = (
    f'{shape} ({row["accelerator"]}), {row["headroom"] / _GIB:.1f} GiB, '
    f'{row["remat"]}, {row["mfu"]:.0%}'
  )
  return f'**{cell}**' if row['how'] == 'compiled' else cell
