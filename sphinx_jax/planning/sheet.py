"""Plans as text: one in full, or several as a ranked table."""

from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from sphinx_jax.core import trees
from sphinx_jax.core.text import table
from sphinx_jax.models import families
from sphinx_jax.planning import leaves
from sphinx_jax.planning.compiled import Compiled
from sphinx_jax.planning.plan import MARGIN, Plan

_GIB, _MIB = 2**30, 2**20

Row = Sequence[object]


def text(plan: Plan, rows: int | None = None, largest: int = 8) -> str:
  """Returns the whole plan as text.

  Args:
    plan: the plan.
    rows: how many rows fit into a device at a time (`largest.rows`), if that was asked.
    largest: the number of leaves and buffers to list.
  """
  sections = (
    _summary(plan),
    *([] if rows is None else [_largest_batch(plan, rows)]),
    _memory(plan),
    _largest_leaves(plan, largest),
    _replicated_leaves(plan),
    *_compiled(plan, largest),
    _flops(plan),
    *([_time(plan)] if plan.roofline else []),
  )
  return '\n\n'.join(sections)


def _section(title: str, rows: Sequence[Row], align: str) -> str:
  """Returns a title and an indented table."""
  lines = table(rows, align).splitlines()
  return '\n'.join([title, *(f'  {line}' for line in lines)])


def _device(plan: Plan) -> str:
  tpu_slice = plan.slice
  if plan.roofline is None:
    return f'a device with {tpu_slice.chip.hbm / _GIB:.2f} GiB'
  return f'{tpu_slice.name} ({tpu_slice.accelerator}, {tpu_slice.devices} devices)'


def _bytes(nbytes: int) -> str:
  if abs(nbytes) >= _GIB // 10:
    return f'{nbytes / _GIB:.2f} GiB'
  return f'{nbytes / _MIB:.2f} MiB'


def _summary(plan: Plan) -> str:
  batch = plan.config.batch
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items())
  rows_per_device = batch.size // plan.batch_ways
  return '\n'.join(
    [
      f'{plan.config.name} on {_device(plan)}: mesh {mesh}',
      f'batch of {batch.size} rows of {batch.seq_len} positions = '
      f'{batch.size * batch.seq_len:,} tokens per step, {rows_per_device} rows per device, '
      f'{plan.microbatches} microbatches; remat {plan.config.model.remat}',
      *_active(plan.config.model),
    ]
  )


def _active(model: ConfigDict) -> list[str]:
  """A line about the parameters of a mixture of experts."""
  if families.active_share(model) == 1:
    return []
  total = trees.count(families.abstract_params(model)['llm'])
  return [
    f'{model.llm.experts_per_token} of {model.llm.experts} experts compute a token: '
    f'{families.count_active(model) / 1e9:.2f} B of the {total / 1e9:.2f} B parameters of the '
    'language model'
  ]


def _largest_batch(plan: Plan, rows: int) -> str:
  if not rows:
    return (
      'Largest batch: none, one row does not fit. Train adapters (forkme:FILE,DIR,qlora), '
      'recompute more (--config.model.remat=full) or shorten rows (--config.batch.seq_len)'
    )
  size = rows * plan.batch_ways
  plural = 'row' if rows == 1 else 'rows'
  return (
    f'Largest batch at a time: {rows} {plural} a device '
    f'(--config.batch.size={size} --config.optimizer.accumulate=1), by estimate; '
    f'larger ones in several microbatches (--config.optimizer.accumulate)'
  )


def _memory(plan: Plan) -> str:
  resident = plan.resident_bytes
  rows: list[Row] = []
  for name, kind in (
    ('parameters, trained', 'trained'),
    ('parameters, frozen', 'frozen'),
    ('optimizer', 'optimizer'),
    ('batch', 'batch'),
  ):
    overall = sum(leaf.nbytes for leaf in plan.leaves if leaf.kind == kind)
    rows.append((name, _bytes(resident[kind]), f'{overall / _GIB:.2f} GiB over all devices'))
  rows.append(('gradients', _bytes(plan.activations['gradients']), 'part of the temporaries'))

  estimate = sum(plan.activations.values())
  parts = ', '.join(f'{name} {size / _GIB:.2f}' for name, size in plan.activations.items())
  rows.append(
    ('temporaries, estimated', _bytes(estimate), f'activations and gradients, GiB: {parts}')
  )
  if plan.compiled and plan.compiled.fits:
    ratio = plan.compiled.temporaries / estimate
    rows += [
      ('temporaries, compiled', _bytes(plan.compiled.temporaries), f'{ratio:.2f} of the estimate'),
      ('program code', _bytes(plan.compiled.code), ''),
    ]

  if plan.compiled:
    refused = '' if plan.compiled.fits else 'the compiler refused it'
    rows.append(('total, compiled', _bytes(plan.total), refused))
  else:
    rows.append(('total, estimated', _bytes(plan.total), ''))
  verdict = 'fits' if plan.fits else 'DOES NOT FIT'
  if plan.compiled is None:
    verdict += f' (an estimate must leave {MARGIN:.0%})'
  hbm = plan.slice.chip.hbm / _GIB
  rows.append((f'headroom of {hbm:.2f} GiB', _bytes(plan.headroom), verdict))
  return _section(
    'Memory of one device (exact from shapes and shardings; '
    'working memory without a compiler is an estimate)',
    rows,
    'lrl',
  )


def _largest_leaves(plan: Plan, largest: int) -> str:
  rows = [
    (leaf.kind, leaf.path, _bytes(leaf.local_nbytes), f'{leaf.dtype}{list(leaf.shape)}')
    for leaf in sorted(plan.leaves, key=lambda leaf: -leaf.local_nbytes)[:largest]
  ]
  return _section('Largest arrays between steps, on one device', rows, 'llrl')


def _replicated_leaves(plan: Plan) -> str:
  copies = leaves.replicated(plan.leaves, plan.slice.devices)
  if not copies:
    return 'Replicated leaves over 1 MiB: none'
  rows = [(leaf.path, _bytes(leaf.nbytes), f'{leaf.dtype}{list(leaf.shape)}') for leaf in copies]
  return _section('Replicated leaves over 1 MiB', rows, 'lrl')


def _compiled(plan: Plan, largest: int) -> list[str]:
  """Returns the sections about buffers and collectives, or why there are none."""
  compiled = plan.compiled
  if plan.roofline is None:
    return ['Not compiled: a compiler takes one accelerator, as --topology names it']
  if compiled is None:
    return [
      'Not compiled: largest buffers, collectives and compiled bytes are missing (libtpu, the TPU '
      "compiler, comes with pip install 'sphinx_jax[plan]'; --compile asks it)"
    ]
  if not compiled.fits:
    source = '' if compiled.total else ' by the estimate'
    return [
      f'Compiled for {compiled.seconds:.0f} s and refused: it needs '
      f'{plan.total / _GIB:.2f} GiB of HBM{source}'
    ]
  sections = []
  if compiled.details.buffers:
    rows = [
      (buffer.name, buffer.shape, _bytes(buffer.nbytes), buffer.source)
      for buffer in compiled.details.buffers[:largest]
    ]
    title = f'Largest pieces of the working memory (compiled in {compiled.seconds:.0f} s)'
    sections.append(_section(title, rows, 'llrl'))
  if 'collectives' not in compiled.details.problems:
    sections.append(_collectives(compiled))
  sections += [
    f'Unavailable: {name}, because {reason}' for name, reason in compiled.details.problems.items()
  ]
  return sections


def _collectives(compiled: Compiled) -> str:
  """Returns a table with one line for each kind of collective in each loop."""
  if not compiled.details.collectives:
    return 'Collectives of one step: none'
  rows: list[Row] = [('loop', 'kind', 'layers', 'per layer', 'bytes per layer', 'bytes per step')]
  for item in compiled.details.collectives:
    rows.append(
      (
        item.loop,
        item.kind,
        item.trips,
        item.count,
        f'{item.nbytes / _MIB:.1f} MiB',
        f'{item.trips * item.nbytes / _GIB:.2f} GiB',
      )
    )
  return _section('Collectives of one step', rows, 'llrrrr')


def _flops(plan: Plan) -> str:
  parts = sorted(plan.flops.parts.items(), key=lambda item: -item[1])
  numbers = [
    *parts,
    ('model', sum(plan.flops.parts.values())),
    ('recomputed by remat', plan.flops.recomputed),
  ]
  rows = [(name, f'{number / 1e12:.2f} TFLOP') for name, number in numbers]
  return _section(
    'FLOP of one step over all devices '
    '(products, from traced shapes; encoders with all their views)',
    rows,
    'lr',
  )


def _time(plan: Plan) -> str:
  time, chip = plan.roofline, plan.slice.chip
  from_compiler = plan.compiled and plan.compiled.details.collectives
  ici_note = '' if from_compiler else '; bytes estimated, not compiled'
  rows = [
    ('compute', f'{time.compute:.3f} s', f'{chip.flops / 1e12:.0f} TFLOP/s bf16 per chip'),
    ('HBM', f'{time.hbm:.3f} s', f'{chip.bandwidth / 1e9:.0f} GB/s per chip'),
    (
      'ICI',
      f'{time.ici:.3f} s',
      f'{chip.ici / 1e9:.0f} GB/s per chip, one direction{ici_note}',
    ),
    ('step', f'{time.seconds:.3f} s', f'at least; MFU at most {time.mfu:.0%}'),
  ]
  title = (
    'Roofline estimate: a bound from peak rates, not a measurement; '
    'expect 40 to 60 % of the peak at best'
  )
  days_at_40_percent = time.days * time.mfu / 0.4
  return '\n'.join(
    [
      _section(title, rows, 'lrl'),
      f'  at most {time.tokens:,.0f} tokens/s, '
      f'{time.examples:,.0f} examples/s (one for each image slot)',
      f'  at least {time.days:.2f} days for {plan.config.steps:,} steps; '
      f'{days_at_40_percent:.2f} days at 40 % MFU',
    ]
  )


def ranked(plans: Iterable[Plan]) -> str:
  """Returns plans as the rows of a table, in the order given."""
  rows: list[Row] = [
    (
      'data',
      'fsdp',
      'tensor',
      'expert',
      'batch',
      'remat',
      'GiB',
      'headroom',
      'bytes',
      'step s',
      'tokens/s',
      'MFU',
      'fits',
    )
  ]
  for plan in plans:
    rows.append(
      (
        plan.mesh['data'],
        plan.mesh['fsdp'],
        plan.mesh['tensor'],
        plan.mesh['expert'],
        plan.config.batch.size,
        plan.config.model.remat,
        f'{plan.total / _GIB:.2f}',
        f'{plan.headroom / _GIB:.2f}',
        'compiled' if plan.compiled else 'estimated',
        f'{plan.roofline.seconds:.3f}',
        f'{plan.roofline.tokens:,.0f}',
        f'{plan.roofline.mfu:.0%}',
        'yes' if plan.fits else 'no',
      )
    )
  note = 'Step time, tokens/s and MFU are roofline bounds, not measurements.'
  return f'{table(rows, "rrrrrrrrrrrrl")}\n{note}'
