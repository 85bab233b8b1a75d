"""The plan of one config on one slice: memory, FLOP and time together."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import errors
from sphinx_jax.models import families
from sphinx_jax.parallel import rules
from sphinx_jax.parallel.mesh import AXES
from sphinx_jax.planning import activations, compiled as compiling, flops, leaves, roofline, slices

# (config, devices) -> `sphinx_jax.run.Program`, which this package must not import.
MakeProgram = Callable[[ConfigDict, Sequence[Any]], Any]

# Share of the HBM that an estimate must leave free. Estimates of the working memory are that
# accurate (docs/results.md).
MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config needs on a slice.

  Attributes:
    config: the run's config.
    slice: the slice.
    mesh: axis -> size.
    microbatches: number of them in a batch.
    leaves: all arrays between updates.
    activations: estimated bytes of the working memory on a device, by purpose.
    flops: FLOP of an update over all devices.
    roofline: bound on the time; None if the rates of the chip are not known.
    compiled: the compiler's answer, or None.
  """

  config: ConfigDict
  slice: slices.Slice
  mesh: Mapping[str, int]
  microbatches: int
  leaves: list[leaves.Leaf]
  activations: Mapping[str, int]
  flops: flops.Flops
  roofline: roofline.Roofline | None
  compiled: compiling.Compiled | None

  @property
  def batch_ways(self) -> int:
    """Devices or groups of devices over which the batch is split."""
    return math.prod(self.mesh[axis] for axis in rules.RULES['batch'].compute)

  @property
  def resident_bytes(self) -> dict[str, int]:
    """Bytes on a device between updates, by kind (`leaves.resident_bytes`)."""
    return leaves.resident_bytes(self.leaves)

  @property
  def estimated(self) -> int:
    """Bytes on a device without a compiler: exact leaves and an estimate of the working memory."""
    return sum(leaf.local_nbytes for leaf in self.leaves) + sum(self.activations.values())

  @property
  def total(self) -> int:
    """Bytes on a device: the compiler's number if there is one, else the estimate."""
    if self.compiled and self.compiled.total:
      return self.compiled.total
    return self.estimated

  @property
  def headroom(self) -> int:
    """Bytes of HBM that are left; negative if the run does not fit."""
    return self.slice.chip.hbm - self.total

  @property
  def fits(self) -> bool:
    """Whether it fits, the program itself included. An estimate must leave `MARGIN` of the HBM."""
    if self.compiled:
      return self.compiled.fits and self.headroom >= 0
    return self.headroom >= MARGIN * self.slice.chip.hbm


@dataclasses.dataclass(frozen=True)
class _Traced:
  """What is counted on a trace of an update with one row.

  Attributes:
    flops: FLOP of that update.
    needs: what its activations need.
  """

  flops: flops.Flops
  needs: activations.Needs


class Planner:
  """Plans configs on slices. Traces that do not depend on the slice are made once.

  Args:
    make_program: `sphinx_jax.run.Program`.
  """

  def __init__(self, make_program: MakeProgram) -> None:
    self._make_program = make_program
    self._traces: dict[str, _Traced] = {}

  def plan(
    self, config: ConfigDict, tpu_slice: slices.Slice, compile_it: bool, details: bool = True
  ) -> Plan:
    """Plans one config on one slice.

    Args:
      config: the run's config; a mesh axis of -1 is filled from the slice.
      tpu_slice: the slice.
      compile_it: whether to compile the update, which takes minutes at full size.
      details: whether to read buffers and collectives of the compiled program too.

    Raises:
      SphinxError: the mesh, batch and slice do not fit together.
    """
    if compile_it:
      devices = slices.devices(tpu_slice)
    else:
      devices = slices.absent_devices(tpu_slice)
    program = self._make_program(config, devices)
    if program.mesh.size != tpu_slice.devices:
      raise errors.make(
        f"mesh of '{config.name}'",
        f'{program.mesh.size} devices',
        f'all {tpu_slice.devices} of {tpu_slice.name}',
        'set one axis to -1: --config.mesh.fsdp=-1',
      )

    resident = leaves.resident_leaves(program)
    traced = self._trace(config)
    update_flops = _times(traced.flops, config.batch.size)
    working_memory = activations.estimate(config, program, traced.needs)
    compiled = compiling.compile_update(program.lower(), details) if compile_it else None

    trained, frozen = roofline.weight_bytes(program)
    hbm_bytes = roofline.hbm_bytes(
      leaves.resident_bytes(resident),
      # In every microbatch. Frozen weights have no weight gradient: one pass.
      weights=program.microbatches * (2 * trained + frozen),
      saved=program.microbatches * working_memory['saved'],
    )
    if compiled and compiled.details.collectives:
      ici_bytes = roofline.ici_bytes(compiled.details.collectives)
    else:
      ici_bytes = roofline.estimated_ici_bytes(config, program)

    bound = roofline.bound(config, tpu_slice, update_flops, hbm_bytes, ici_bytes)
    return Plan(
      config=config,
      slice=tpu_slice,
      mesh=dict(program.mesh.shape),
      microbatches=program.microbatches,
      leaves=resident,
      activations=working_memory,
      flops=update_flops,
      roofline=None if math.isnan(tpu_slice.chip.flops) else bound,
      compiled=compiled,
    )

  def _trace(self, config: ConfigDict) -> _Traced:
    """Traces on one device with one row; FLOP and needs are proportional to rows.

    FLOP are counted with plain attention, because an accelerator's attention kernel is opaque.
    """
    key = _trace_key(config)
    if key not in self._traces:
      devices = slices.absent_devices(slices.find('v5e:1x1'))
      single = changed(config, _ONE_ROW)
      plain = changed(single, flops.PLAIN)
      names = families.part_names(config.model)
      self._traces[key] = _Traced(
        flops=flops.count(
          self._make_program(plain, devices).trace(), names, flops.loss_chunks(config)
        ),
        needs=activations.needs(self._make_program(single, devices).trace(), names),
      )
    return self._traces[key]


ONE_DEVICE = {f'mesh.{axis}': 1 for axis in AXES}
_ONE_ROW = {**ONE_DEVICE, 'batch.size': 1, 'optimizer.accumulate': 1}


def _trace_key(config: ConfigDict) -> str:
  """Returns the settings that a trace depends on, as JSON."""
  settings = {
    'model': config.model.to_dict(),
    'seq_len': config.batch.seq_len,
    'images': config.batch.images,
    'optimizer': config.optimizer.name,
    'trainable': config.trainable,
    'lora': config.lora.to_dict() if config.get('lora') else None,
    'frozen_dtype': config.get('frozen_dtype'),
    'loss_chunk': config.loss_chunk,
    'preference': bool(config.get('preference')),
  }
  return json.dumps(settings, sort_keys=True)


def _times(update_flops: flops.Flops, factor: float) -> flops.Flops:
  parts = {part: number * factor for part, number in update_flops.parts.items()}
  return flops.Flops(parts, update_flops.recomputed * factor)


def changed(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
  """Returns a locked copy of a config with some dotted settings replaced or added."""
  copy = ConfigDict(config.to_dict())
  copy.update_from_flattened_dict(settings)
  return copy.lock()
