"""A lower bound on the time of an update: FLOP, HBM traffic and interconnect, each at peak rate.

The largest of the three is the bound. It is never a measurement: well-tuned programs reach 40 to
60 % of a chip's peak.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import trees
from sphinx_jax.models.experts import MORE_ROUNDS
from sphinx_jax.parallel import rules
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


def split_ways(path: str, logical_axes: Mapping[str, tuple], program: Any) -> int:
  """The number of parts of a parameter with which devices compute: over tensor, experts over both.

  Args:
    path: of the parameter.
    logical_axes: path -> names of its dimensions.
    program: a `sphinx_jax.run.Program`.
  """
  mesh = program.mesh.shape
  return mesh['tensor'] * (mesh['expert'] if 'experts' in logical_axes[path] else 1)


def gather_ways(path: str, logical_axes: Mapping[str, tuple], program: Any) -> int:
  """The number of devices that gather a parameter; arguments as of `split_ways`."""
  mesh = program.mesh.shape
  return mesh['fsdp'] * (1 if 'experts' in logical_axes[path] else mesh['expert'])


def weight_bytes(program: Any) -> tuple[float, float]:
  """Returns the bytes of (trained, frozen) weights that a device computes with in one pass.

  They are in bfloat16.
  """
  totals = {True: 0.0, False: 0.0}
  for is_trained, nbytes, _ in _weights(program):
    totals[is_trained] += nbytes
  return totals[True], totals[False]


def _weights(program: Any) -> Iterator[tuple[bool, float, int]]:
  """Yields (whether it is trained, bytes of `weight_bytes`, `gather_ways`) of every parameter."""
  axes = trees.flatten(program.layout.logical_axes)
  for is_trained, tree in ((True, program.state.trained), (False, program.state.frozen)):
    for path, leaf in trees.flatten(tree).items():
      nbytes = _BFLOAT16_BYTES * math.prod(leaf.shape) / split_ways(path, axes, program)
      yield is_trained, nbytes, gather_ways(path, axes, program)


def ici_bytes(collectives: Sequence[Collective]) -> float:
  """Returns the bytes that one device receives in an update, from the compiled collectives.

  An all-reduce counts twice, because it scatters and gathers. The loops for uneven choices of
  experts do not count.
  """
  total = 0.0
  for item in collectives:
    if MORE_ROUNDS in item.loop:
      continue
    passes = 2 if item.kind == 'all-reduce' else 1
    total += passes * item.trips * item.nbytes
  return total


def estimated_ici_bytes(config: ConfigDict, program: Any) -> float:
  """Estimates what `ici_bytes` returns for a well-partitioned program, without a compiler.

  In every microbatch, over `fsdp` and, but for experts, `expert`, trained weights are gathered for
  the forward and the backward pass and their gradients scattered, all in bfloat16; frozen weights
  are gathered once. Over `data`, gradients are summed. Over `tensor`, activations are summed after
  each of a layer's two blocks, forward and backward, and once more if remat recomputes them. Over
  `expert`, the rows of all choices go to their experts and back, as often.
  """
  mesh, model = program.mesh.shape, config.model
  total = 0.0
  for is_trained, nbytes, ways in _weights(program):
    if ways > 1:
      total += program.microbatches * nbytes * (3 if is_trained else 1)
    if mesh['data'] > 1 and is_trained:
      total += program.microbatches * 2 * nbytes / ways
  positions = config.batch.size * config.batch.seq_len / rules.ways('batch', program.mesh)
  activations = _BFLOAT16_BYTES * positions * model.llm.width
  passes = 4 if model.remat == 'none' else 6  # Two blocks of a layer, or two ways of a row.
  if mesh['tensor'] > 1:
    total += 2 * model.llm.layers * passes * activations
  if mesh['expert'] > 1:
    away = model.llm.experts_per_token * (1 - 1 / mesh['expert'])
    total += model.llm.layers * passes * away * activations
  return total
