"""FLOP of an update, counted from its traced shapes.

A product of [M,K] and [K,N] counts 2 * M * K * N, times the trips of the loops around it. The LM
head counts for all positions, although the update computes it only where there is loss weight.
"""

import collections
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

PRODUCTS = ('dot_general', 'conv_general_dilated', 'ragged_dot_general')

# Settings with which all products can be seen.
PLAIN = {'model.attention': 'xla', 'model.grouped': 'ragged'}


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOP of one update over all devices.

  Attributes:
    parts: FLOP by part of the model (`families.part_names`), encoders with all their views, and
      'lm_head'.
    recomputed: FLOP that remat computes a second time; not in `parts`.
  """

  parts: Mapping[str, float]
  recomputed: float


def loss_chunks(config: ConfigDict) -> int:
  """Most chunks in which the loss of a run is computed, when all positions have loss weight."""
  return math.ceil(config.batch.seq_len / (config.loss_chunk or config.batch.seq_len))


def count(traced: Any, names: Collection[str], chunks: int) -> Flops:
  """Counts the products of one update.

  Matrix products and convolutions are counted, as MFU counts them. Attention is counted as its
  kernel computes it: plain attention of packed rows skips most of what the causal mask hides. A
  custom kernel (splash) is opaque, and so are loops over groups of rows: trace the program with
  `PLAIN` settings on one device.

  Args:
    traced: `Program.trace()`.
    names: `families.part_names` of its model.
    chunks: `loss_chunks` of its config. The data decide how many of them are computed.
  """
  parts: collections.Counter[str] = collections.Counter()
  recomputed = 0.0
  for flops, path in _products(traced.jaxpr.jaxpr, 1, '', chunks):
    if 'rematted_computation' in path:
      recomputed += flops
    else:
      parts[part_of(path, names)] += flops
  return Flops(dict(parts), recomputed)


def part_of(path: str, names: Collection[str]) -> str:
  """The part of a model that an equation with this name stack belongs to, or 'other'."""
  modules = path.split('/')
  if any('lm_head' in module for module in modules):
    return 'lm_head'
  return next((name for m in modules if (name := m.split('.')[0]) in names), 'other')


def _products(jaxpr: Any, trips: int, path: str, chunks: int) -> Iterator[tuple[float, str]]:
  """Yields (FLOP, name stack) of every product in a jaxpr that runs `trips` times."""
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    eqn_path = f'{path}/{eqn.source_info.name_stack}'
    if name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
      yield 2.0 * trips * depth * math.prod(eqn.outvars[0].aval.shape), eqn_path
    elif name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      out_axis = eqn.params['dimension_numbers'].rhs_spec[0]
      depth = math.prod(kernel) / kernel[out_axis]
      yield 2.0 * trips * depth * math.prod(eqn.outvars[0].aval.shape), eqn_path
    elif name == 'ragged_dot_general':  # Every row meets one matrix.
      yield 2.0 * trips * eqn.invars[0].aval.size * eqn.outvars[0].aval.shape[-1], eqn_path
    elif name == 'cond':  # One branch for each platform: the most expensive one counts.
      branches = [list(_products(b.jaxpr, trips, eqn_path, chunks)) for b in eqn.params['branches']]
      yield from max(branches, key=lambda products: sum(flops for flops, _ in products))
    else:
      length = {'scan': eqn.params.get('length'), 'while': chunks}.get(name, 1)
      for inner in inner_jaxprs(eqn.params):
        yield from _products(inner, trips * length, eqn_path, chunks)


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
  """Yields the jaxprs that an equation calls, from its parameters."""
  for value in params.values():
    jaxpr = getattr(value, 'jaxpr', value)
    if hasattr(jaxpr, 'eqns'):
      yield jaxpr
