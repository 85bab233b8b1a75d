"""Arithmetic of an update, counted from its traced shapes: 2 * M * N * K for every product, times the trips of its loop."""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PARTS = re.compile(
  r'(?<=/)(clip|convnext|dinov2|qformer)(?=/|$)|(visual_proj|qformer_proj)|llm\.(head)'
)


def count(traced: Any) -> tuple[dict[str, float], float]:
  """Products of one update, over all devices.

  Counted are matrix products and convolutions, as MFU counts them. Attention is counted as its kernel computes it: plain
  attention of packed rows skips most of what causality hides. A kernel of its own (splash) is opaque: trace the program
  with `model.attention='xla'` and on one device.

  Args:
    traced: `Program.trace()`.

  Returns:
    FLOP by part of the model (encoders by name, their views included; projections; 'llm'; 'head'), and beside them the
    FLOP that remat computes a second time.
  """
  parts: collections.Counter[str] = collections.Counter()
  again = 0.0
  for flops, path in _products(traced.jaxpr.jaxpr, 1, ''):
    if 'rematted_computation' in path:
      again += flops
    else:
      parts[_part(path)] += flops
  return dict(parts), again


def _part(path: str) -> str:
  found = _PARTS.search(path)
  return next(filter(None, found.groups())) if found else 'llm' if 'llm' in path else 'other'


def _products(jaxpr: Any, times: int, path: str) -> Iterator[tuple[float, str]]:
  for eqn in jaxpr.eqns:
    here = f'{path}/{eqn.source_info.name_stack}'
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
      yield 2.0 * times * depth * math.prod(eqn.outvars[0].aval.shape), here
    elif eqn.primitive.name == 'conv_general_dilated':
      kernel, names = eqn.invars[1].aval.shape, eqn.params['dimension_numbers'].rhs_spec
      yield (
        2.0 * times * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / kernel[names[0]],
        here,
      )
    elif eqn.primitive.name == 'cond':  # By platform: the costliest branch stands for all.
      yield from max(
        (list(_products(branch.jaxpr, times, here)) for branch in eqn.params['branches']),
        key=lambda found: sum(flops for flops, _ in found),
      )
    else:
      for inner in inner_jaxprs(eqn.params):
        yield from _products(
          inner,
          times * eqn.params.get('length', 1) if eqn.primitive.name == 'scan' else times,
          here,
        )


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
  """What the parameters of an equation call."""
  for value in params.values():
    value = getattr(value, 'jaxpr', value)
    if hasattr(value, 'eqns'):
      yield value
