"""A lower bound on the time of an update: FLOP, HBM traffic and interconnect, each at peak rate.

The largest of the three is the bound. It is never a measurement: well-tuned programs reach 40 to
60 % of a chip's peak.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import trees
from sphinx_jax.planning.compiler_dumps import Collective
from sphinx_jax.planning.flops import Flops
from sphinx_jax.planning.slices import Slice

_BFLOAT16_BYTES = 2.0
_SECONDS_PER_DAY = 86400


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Bounds for one update and for the run.

  Attributes:
    compute: seconds of its FLOP.
    hbm: seconds of its HBM traffic.
    ici: seconds of its interconnect traffic.
    seconds: the largest of the three.
    mfu: model FLOP utilization at that time, without recomputed FLOP.
    tokens: positions per second.
    examples: examples per second, one for each image slot of a row.
    days: days for `config.steps`.
  """

  compute: float
  hbm: float
  ici: float
  seconds: float
  mfu: float
  tokens: float
  examples: float
  days: float


def bound(
  config: ConfigDict, tpu_slice: Slice, flops: Flops, hbm_bytes: float, ici_bytes: float
) -> Roofline:
  """Returns the roofline of one update.

  Args:
    config: the run's config.
    tpu_slice: the slice.
    flops: over all devices.
    hbm_bytes: bytes that one device reads and writes.
    ici_bytes: bytes that one device receives.
  """
  chip = tpu_slice.chip
  model_flops = sum(flops.parts.values())
  peak = tpu_slice.devices * chip.flops
  compute = (model_flops + flops.recomputed) / peak
  hbm = hbm_bytes / chip.bandwidth
  ici = ici_bytes / chip.ici
  seconds = max(compute, hbm, ici)
  batch = config.batch
  return Roofline(
    compute=compute,
    hbm=hbm,
    ici=ici,
    seconds=seconds,
    mfu=model_flops / peak / seconds,
    tokens=batch.size * batch.seq_len / seconds,
    examples=batch.size * max(batch.images, 1) / seconds,
    days=seconds * config.steps / _SECONDS_PER_DAY,
  )


def hbm_bytes(resident: Mapping[str, int], weights: float, saved: float) -> float:
  """Returns the bytes that one device moves at least.

  The optimizer reads gradients, and reads and writes parameters and moments. All-gathered weights
  are written once and read by each pass. What is saved for the backward pass is written and read.

  Args:
    resident: bytes on a device by kind (`leaves.resident_bytes`).
    weights: bytes of the weights that a device computes with, over all passes (`weight_bytes`).
    saved: bytes that are kept for the backward pass.
  """
  optimizer = 2 * (resident['trained'] + resident['optimizer'] + resident['gradients'])
  return optimizer + resident['batch'] + 2 * weights + 2 * saved


def weight_bytes(program: Any) -> tuple[float, float]:
  """Returns the bytes of (trained, frozen) weights that a device computes with in one pass.

  They are in bfloat16, and split over the tensor axis only.
  """
  tensor = program.mesh.shape['tensor']
  trained = _BFLOAT16_BYTES * trees.count(program.state.trained) / tensor
  frozen = _BFLOAT16_BYTES * trees.count(program.state.frozen) / tensor
  return trained, frozen


def ici_bytes(collectives: Sequence[Collective]) -> float:
  """Returns the bytes that one device receives in an update, from the compiled collectives.

  An all-reduce counts twice, because it scatters and gathers.
  """
  total = 0.0
  for item in collectives:
    passes = 2 if item.kind == 'all-reduce' else 1
    total += passes * item.trips * item.nbytes
  return total


def estimated_ici_bytes(config: ConfigDict, program: Any) -> float:
  """Estimates what `ici_bytes` returns for a well-partitioned program, without a compiler.

  In every microbatch, over `fsdp`, trained weights are gathered for the forward and the backward
  pass and their gradients scattered, all in bfloat16; frozen weights are gathered once. Over
  `data`, gradients are summed. Over `tensor`, activations are summed after each of a layer's two
  blocks, forward and backward, and once more if remat recomputes them.
  """
  mesh, model = program.mesh.shape, config.model
  trained, frozen = weight_bytes(program)
  total = 0.0
  if mesh['fsdp'] > 1:
    gathers, scatter = 2 * trained + frozen, trained
    total += program.microbatches * (gathers + scatter)
  if mesh['data'] > 1:
    total += program.microbatches * 2 * trained / mesh['fsdp']
  if mesh['tensor'] > 1:
    positions = config.batch.size * config.batch.seq_len / (mesh['data'] * mesh['fsdp'])
    activations = _BFLOAT16_BYTES * positions * model.llm.width
    sums_per_layer = 4 if model.remat == 'none' else 6
    total += 2 * model.llm.layers * sums_per_layer * activations
  return total
