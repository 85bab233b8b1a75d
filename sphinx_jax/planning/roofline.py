"""A bound on the time of an update: the slowest of arithmetic, HBM and interconnect, if each ran at its peak.

An estimate from below, never a measurement: real runs of well-tuned programs reach 40 to 60 % of a chip's peak.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import trees
from sphinx_jax.planning import hlo
from sphinx_jax.planning.slices import Slice


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one update by each limit, the largest of them, and what follows from it."""

  compute: float
  hbm: float
  ici: float
  seconds: float
  mfu: float
  tokens: float  # a second
  examples: float  # a second, one for each image slot of a row
  days: float  # of config.steps


def bound(
  config: ConfigDict, where: Slice, flops: Mapping[str, float], again: float, hbm: float, ici: float
) -> Roofline:
  """The roofline of one update.

  Args:
    config: of the run.
    where: the slice.
    flops: by part, over all devices, without recomputation.
    again: FLOP that remat computes a second time, over all devices.
    hbm: bytes that one device reads and writes.
    ici: bytes that one device receives.
  """
  model = sum(flops.values())
  peak = where.devices * where.chip.flops
  times = (model + again) / peak, hbm / where.chip.bandwidth, ici / where.chip.ici
  seconds = max(times)
  rows = config.batch.size
  return Roofline(
    *times,
    seconds,
    model / peak / seconds,
    rows * config.batch.seq_len / seconds,
    rows * max(config.batch.images, 1) / seconds,
    seconds * config.steps / 86400,
  )


def hbm_bytes(held: Mapping[str, int], gathered: float, saved: float) -> float:
  """Bytes that one device moves at least: the optimizer reads gradients and reads and writes parameters and moments; weights
  are written once gathered and read by each pass; what is saved is written and read.

  Args:
    held: bytes on a device by kind (`leaves.by_kind`).
    gathered: bytes of the weights that a device computes with, in the compute dtype, over all passes.
    saved: bytes kept for the backward pass.
  """
  return (
    2 * (held['trained'] + held['optimizer'] + held['gradients'])
    + held['batch']
    + 2 * gathered
    + 2 * saved
  )


def gathered_bytes(program: Any) -> tuple[float, float]:
  """Bytes of (trained, frozen) weights that a device computes with in one pass, in bfloat16."""
  state, tensor = program.state, program.mesh.shape['tensor']
  return 2.0 * trees.count(state.trained) / tensor, 2.0 * trees.count(state.frozen) / tensor


def ici_bytes(collectives: Sequence[hlo.Collective]) -> float:
  """Bytes that one device receives in an update by what was compiled: twice for all-reduce, which scatters and gathers."""
  return float(
    sum((2 if one.kind == 'all-reduce' else 1) * one.trips * one.nbytes for one in collectives)
  )


def estimated_ici_bytes(config: ConfigDict, program: Any) -> float:
  """The same without a compiler, of a well split program.

  Trained weights are gathered for the forward and the backward pass and their gradients scattered in float32, frozen ones
  are gathered once; `data` sums what each copy has of the gradients; `tensor` sums activations after each of a layer's two
  blocks, forward and backward, and once more where remat computes them again.
  """
  mesh, model = program.mesh.shape, config.model
  trained, frozen = gathered_bytes(program)
  total = (4 * trained + frozen) if mesh['fsdp'] > 1 else 0.0
  if mesh['data'] > 1:
    total += 2 * 2 * trained / mesh['fsdp']
  if mesh['tensor'] > 1:
    positions = config.batch.size * config.batch.seq_len / (mesh['data'] * mesh['fsdp'])
    sums = 4 if model.remat == 'none' else 6
    total += 2 * 2.0 * model.llm.layers * sums * positions * model.llm.width
  return total
