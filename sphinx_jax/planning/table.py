"""README's table: the smallest slice of each kind that a shipped config fits on, and what is left there."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import config as configs, errors
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.planning import slices
from sphinx_jax.planning.plan import Plan, Planner, changed

OWN = 'v5p'  # The kind of slice on which every config is compiled; the others are estimated.
_GIB = 2**30


def fill(
  runs: Mapping[str, ConfigDict], planner: Planner, output: pathlib.Path | None, compiler: bool
) -> list[dict[str, Any]]:
  """The smallest slice of every kind for every run.

  Args:
    runs: label ('stage2.py:13b,1k') -> config.
    planner: see plan.py.
    output: JSON file of the rows, written after each one; rows of the same configs in it are not worked out again.
    compiler: whether libtpu is there; False: all is estimated.

  Returns:
    Rows: `run`, `kind`, `slice` (None: none is large enough), `accelerator`, `headroom` and `total` (bytes on a device),
    `tokens` (a step), `days` (a bound), `how` ('compiled' or 'estimated'), `seconds` of compilation, `config` (a hash).
  """
  done = {(row['run'], row['kind'], row['config']): row for row in _read(output)}
  rows = []
  cells = [
    (run, kind) for kind in sorted(slices.CHIPS, key=lambda kind: kind == OWN) for run in runs
  ]
  for run, kind in Progress(cells, what='will it fit', unit='cell'):
    key = hashlib.sha256(configs.to_json(runs[run]).encode()).hexdigest()[:12]
    row = done.get((run, kind, key)) or _row(
      run, kind, key, runs[run], planner, compiler and kind == OWN
    )
    rows.append(row)
    if output:
      output.write_text(json.dumps(rows, indent=1))
  return rows


def smallest(config: ConfigDict, kind: str, planner: Planner, compiler: bool) -> Plan | None:
  """The plan on the smallest slice of a kind that a config fits on; with a compiler, by its word.

  Where a slice has more devices than the batch has rows, rows are added until each device has one.
  """
  for where in slices.slices(kind):
    rows = max(config.batch.size, where.devices * config.optimizer.accumulate)
    try:
      found = planner.plan(changed(config, {'batch.size': rows}), where, compile_it=False)
    except errors.SphinxError:  # Its mesh does not divide the model's widths.
      continue
    if found.fits and compiler:
      log.info('compiling %s for %s', config.name, where.name)
      found = planner.plan(found.config, where, compile_it=True, details=False)
    if found.fits:
      return found
  return None


def _row(
  run: str, kind: str, key: str, config: ConfigDict, planner: Planner, compiler: bool
) -> dict[str, Any]:
  plan = smallest(config, kind, planner, compiler)
  row: dict[str, Any] = dict(run=run, kind=kind, config=key, slice=None)
  if plan:
    row |= dict(
      slice=plan.where.name,
      accelerator=plan.where.accelerator,
      headroom=plan.headroom,
      total=plan.total,
      estimated=plan.estimated,
      tokens=plan.config.batch.size * plan.config.batch.seq_len,
      days=plan.roofline.days,
      how='compiled' if plan.compiled else 'estimated',
      seconds=plan.compiled.seconds if plan.compiled else 0,
    )
  return row


def _read(output: pathlib.Path | None) -> list[dict[str, Any]]:
  return json.loads(output.read_text()) if output and output.exists() else []


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of `fill` as a table: a line for each run, a column for each kind of slice."""
  lines = [
    '| run | tokens a step | ' + ' | '.join(slices.CHIPS) + ' |',
    '|---|---|' + '---|' * len(slices.CHIPS),
  ]
  for run in dict.fromkeys(row['run'] for row in rows):
    cells = {row['kind']: row for row in rows if row['run'] == run}
    tokens = min((row['tokens'] for row in cells.values() if row['slice']), default=0)
    lines.append(
      f'| {run} | {tokens:,} | '
      + ' | '.join(_cell(cells[kind], tokens) for kind in slices.CHIPS)
      + ' |'
    )
  return '\n'.join(
    [
      *lines,
      '',
      'A cell: smallest slice that fits (accelerator type), GiB of HBM left on each device. **Bold** is '
      'compiled by libtpu for that slice, the rest is estimated.',
    ]
  )


def _cell(row: Mapping[str, Any], tokens: int) -> str:
  if not row['slice']:
    return 'none'
  more = f', {row["tokens"]:,} tokens a step' if row['tokens'] != tokens else ''
  text = f'{row["slice"].partition(":")[2]} ({row["accelerator"]}), {row["headroom"] / _GIB:.1f} GiB{more}'
  return f'**{text}**' if row['how'] == 'compiled' else text
