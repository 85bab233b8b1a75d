"""A plan as text, and as one row of a table."""

from collections.abc import Iterable

from sphinx_jax.planning import leaves as state
from sphinx_jax.planning.compiled import Compiled
from sphinx_jax.planning.plan import MARGIN, Plan

_GIB, _MIB = 2**30, 2**20


def text(plan: Plan, largest: int = 8) -> str:
  """The whole plan, section by section; `largest` leaves and buffers are listed."""
  return '\n\n'.join(
    '\n'.join(section)
    for section in (
      _head(plan),
      _memory(plan),
      _leaves(plan, largest),
      _compiled(plan, largest),
      _arithmetic(plan),
      _time(plan),
    )
    if section
  )


def _head(plan: Plan) -> list[str]:
  rows, length = plan.config.batch.size, plan.config.batch.seq_len
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items())
  per = plan.mesh['data'] * plan.mesh['fsdp']
  return [
    f'{plan.config.name} on {plan.where.name} ({plan.where.accelerator}, {plan.where.devices} devices): mesh {mesh}',
    f'{rows} rows of {length} positions = {rows * length:,} tokens a step, {rows // per} rows a device, '
    f'{plan.config.optimizer.accumulate} microbatches; remat {plan.config.model.remat}',
  ]


def _memory(plan: Plan) -> list[str]:
  held, counts = (
    plan.held,
    {kind: sum(leaf.nbytes for leaf in plan.leaves if leaf.kind == kind) for kind in plan.held},
  )
  lines = [
    'Memory of one device (exact from shapes and layouts; working memory without a compiler is an estimate)'
  ]
  for name, kind in (
    ('parameters, trained', 'trained'),
    ('parameters, frozen', 'frozen'),
    ('optimizer', 'optimizer'),
    ('batch', 'batch'),
  ):
    lines.append(_line(name, held[kind], f'{counts[kind] / _GIB:.2f} GiB over all devices'))
  lines.append(_line('gradients', plan.activations['gradients'], 'part of the temporaries'))
  estimate = sum(plan.activations.values())
  parts = ', '.join(f'{name} {size / _GIB:.2f}' for name, size in plan.activations.items())
  lines.append(_line('temporaries, estimated', estimate, f'activations and gradients: {parts}'))
  if plan.compiled and plan.compiled.fits:
    lines += [
      _line(
        'temporaries, compiled',
        plan.compiled.temporaries,
        _ratio(plan.compiled.temporaries, estimate),
      ),
      _line('program code', plan.compiled.code),
    ]
  how = 'compiled' if plan.compiled else 'estimated'
  lines.append(
    _line(
      f'total, {how}',
      plan.total,
      'the compiler refused it' if plan.compiled and not plan.compiled.fits else '',
    )
  )
  verdict = 'fits' if plan.fits else 'DOES NOT FIT'
  if plan.compiled is None:
    verdict += f' (an estimate must leave {MARGIN:.0%})'
  lines.append(
    _line(f'headroom of {plan.where.chip.hbm / _GIB:.2f} GiB HBM', plan.headroom, verdict)
  )
  return lines


def _leaves(plan: Plan, largest: int) -> list[str]:
  lines = ['Largest arrays between steps, on one device']
  for leaf in sorted(plan.leaves, key=lambda leaf: -leaf.local)[:largest]:
    lines.append(
      _line(f'{leaf.kind} {leaf.path}', leaf.local, f'{leaf.dtype}{list(leaf.shape)}', 64)
    )
  copies = state.replicated(plan.leaves, plan.where.devices)
  lines.append('Replicated leaves over 1 MiB' + ('' if copies else ': none'))
  return lines + [
    _line(leaf.path, leaf.nbytes, f'{leaf.dtype}{list(leaf.shape)}', 64) for leaf in copies
  ]


def _compiled(plan: Plan, largest: int) -> list[str]:
  if plan.compiled is None:
    return [
      'Not compiled: largest buffers, collectives and compiled bytes are missing (libtpu, the TPU compiler, comes with '
      "pip install 'sphinx_jax[plan]'; --compile asks it)"
    ]
  if not plan.compiled.fits:
    return [
      f'Compiled for {plan.compiled.seconds:.0f} s and refused: it needs {plan.total / _GIB:.2f} GiB of HBM'
      + ('' if plan.compiled.total else ' by the estimate')
    ]
  lines = [f'Largest pieces of the working memory (compiled in {plan.compiled.seconds:.0f} s)']
  for buffer in plan.compiled.buffers[:largest]:
    lines.append(_line(f'{buffer.name} {buffer.shape}', buffer.nbytes, buffer.source, 64))
  return lines + collectives(plan.compiled)


def collectives(compiled: Compiled) -> list[str]:
  """One line for each kind of collective in each loop."""
  lines = [
    '',
    f'{"Collectives of one step":34} {"kind":18} {"layers":>6} {"a layer":>8} {"bytes a layer":>14} {"bytes a step":>14}',
  ]
  for one in compiled.collectives:
    lines.append(
      f'  {one.where:32} {one.kind:18} {one.trips:6} {one.count:8} {one.nbytes / _MIB:10.1f} MiB '
      f'{one.trips * one.nbytes / _GIB:10.2f} GiB'
    )
  return lines if compiled.collectives else ['', 'Collectives of one step: none']


def _arithmetic(plan: Plan) -> list[str]:
  model = sum(plan.flops.values())
  lines = [
    'FLOP of one step over all devices (products, from traced shapes; encoders with all their views)'
  ]
  lines += [
    f'  {name:32} {flops / 1e12:12.2f} TFLOP'
    for name, flops in sorted(plan.flops.items(), key=lambda item: -item[1])
  ]
  return [
    *lines,
    f'  {"model":32} {model / 1e12:12.2f} TFLOP',
    f'  {"recomputed by remat":32} {plan.again / 1e12:12.2f} TFLOP',
  ]


def _time(plan: Plan) -> list[str]:
  time, chip = plan.roofline, plan.where.chip
  return [
    'Roofline estimate: a bound from peak rates, not a measurement; expect 40 to 60 % of the peak at best',
    f'  compute {time.compute:9.3f} s   ({chip.flops / 1e12:.0f} TFLOP/s bf16 a chip)',
    f'  HBM     {time.hbm:9.3f} s   ({chip.bandwidth / 1e9:.0f} GB/s a chip)',
    f'  ICI     {time.ici:9.3f} s   ({chip.ici / 1e9:.0f} GB/s a chip, one direction'
    f'{"" if plan.compiled and plan.compiled.collectives else "; bytes estimated, not compiled"})',
    f'  step    {time.seconds:9.3f} s at least; MFU at most {time.mfu:.0%}',
    f'  at most {time.tokens:,.0f} tokens/s, {time.examples:,.0f} examples/s (one for each image slot)',
    f'  at least {time.days:.2f} days for {plan.config.steps:,} steps; {time.days * time.mfu / 0.4:.2f} days at 40 % MFU',
  ]


def ranked(plans: Iterable[Plan]) -> str:
  """Plans as rows, in the order given."""
  lines = [
    f'{"data":>4} {"fsdp":>5} {"tensor":>6} {"rows":>6} {"remat":>10} {"GiB":>8} {"headroom":>9} {"bytes":>10} {"step s":>8} '
    f'{"tokens/s":>11} {"MFU":>5}  fits'
  ]
  for plan in plans:
    lines.append(
      f'{plan.mesh["data"]:4} {plan.mesh["fsdp"]:5} {plan.mesh["tensor"]:6} {plan.config.batch.size:6} '
      f'{plan.config.model.remat:>10} {plan.total / _GIB:8.2f} {plan.headroom / _GIB:9.2f} '
      f'{"compiled" if plan.compiled else "estimated":>10} {plan.roofline.seconds:8.3f} {plan.roofline.tokens:11,.0f} '
      f'{plan.roofline.mfu:5.0%}  {"yes" if plan.fits else "no"}'
    )
  return '\n'.join([*lines, 'Step time, tokens/s and MFU are roofline bounds, not measurements.'])


def _line(name: str, nbytes: int, note: str = '', width: int = 34) -> str:
  unit, size = ('GiB', nbytes / _GIB) if abs(nbytes) >= _GIB // 10 else ('MiB', nbytes / _MIB)
  return f'  {name:{width}} {size:9.2f} {unit}  {note}'.rstrip()


def _ratio(compiled: int, estimate: int) -> str:
  return f'{compiled / estimate:.2f} of the estimate'
