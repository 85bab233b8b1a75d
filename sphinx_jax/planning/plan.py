"""One config on one slice: everything the other files of this room find out about it, together."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import errors
from sphinx_jax.planning import (
  activations,
  compiled as compiling,
  flops as arithmetic,
  leaves as state,
  roofline,
  slices,
)

# (config, devices) -> Program: it belongs to the doors, which this room does not know.
MakeProgram = Callable[[ConfigDict, Sequence[Any]], Any]


MARGIN = 0.1  # Of the HBM: estimates of the working memory are that good (benchmarks/RESULTS.md).


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config needs on a slice.

  Attributes:
    config: of the run.
    where: the slice.
    mesh: size of each axis.
    leaves: all arrays between updates.
    activations: estimate of the working memory, by what it is for.
    flops: of an update over all devices, by part; `again` is what remat computes a second time.
    roofline: a bound on the time.
    compiled: the compiler's answer, or None.
  """

  config: ConfigDict
  where: slices.Slice
  mesh: Mapping[str, int]
  leaves: list[state.Leaf]
  activations: Mapping[str, int]
  flops: Mapping[str, float]
  again: float
  roofline: roofline.Roofline
  compiled: compiling.Compiled | None

  @property
  def held(self) -> dict[str, int]:
    """Bytes on a device by kind (leaves.by_kind)."""
    return state.by_kind(self.leaves)

  @property
  def estimated(self) -> int:
    """Bytes on a device without a compiler: exact for what lies there, an estimate of the working memory."""
    return sum(leaf.local for leaf in self.leaves) + sum(self.activations.values())

  @property
  def total(self) -> int:
    """Bytes on a device: the compiler's if it was asked and says them."""
    return self.compiled.total if self.compiled and self.compiled.total else self.estimated

  @property
  def headroom(self) -> int:
    """Bytes of HBM that are left; negative where it does not fit."""
    return self.where.chip.hbm - self.total

  @property
  def fits(self) -> bool:
    """Whether it fits, the program itself included; where no compiler was asked, the estimate must leave a tenth of the HBM."""
    if self.compiled:
      return self.compiled.fits and self.headroom >= 0
    return self.headroom >= MARGIN * self.where.chip.hbm


class Planner:
  """Plans configs on slices; what does not depend on the slice is found out once.

  Args:
    make_program: `sphinx_jax.run.Program`.
  """

  def __init__(self, make_program: MakeProgram):
    self._make = make_program
    self._counted: dict[str, tuple] = {}

  def plan(
    self, config: ConfigDict, where: slices.Slice, compile_it: bool, details: bool = True
  ) -> Plan:
    """The plan of one config on one slice.

    Args:
      config: of the run; its mesh is filled from the slice.
      where: the slice.
      compile_it: asks the compiler, which takes minutes at full size.
      details: buffers and collectives of the compiled program too.

    Raises:
      SphinxError: a mesh, batch and slice that do not fit together.
    """
    program = self._make(
      config, slices.devices(where) if compile_it else slices.absent_devices(where)
    )
    if program.mesh.size != where.devices:
      raise errors.make(
        f"mesh of '{config.name}'",
        f'{program.mesh.size} devices',
        f'all {where.devices} of {where.name}',
        'set one axis to -1: --config.mesh.fsdp=-1',
      )
    leaves = state.held(program)
    flops, again, saved = self._count(config)
    parts = activations.estimate(config, program, saved)
    compiled = compiling.compile_update(program.lower(), details) if compile_it else None
    trained, frozen = roofline.gathered_bytes(program)
    hbm = roofline.hbm_bytes(state.by_kind(leaves), 2 * trained + frozen, parts['saved'])
    received = (
      roofline.ici_bytes(compiled.collectives)
      if compiled and compiled.collectives
      else roofline.estimated_ici_bytes(config, program)
    )
    time = roofline.bound(config, where, flops, again, hbm, received)
    return Plan(
      config, where, dict(program.mesh.shape), leaves, parts, flops, again, time, compiled
    )

  def _count(self, config: ConfigDict) -> tuple[Mapping[str, float], float, activations.Stacks]:
    """FLOP and saved stacks, traced on one device with one row a microbatch: both are proportional to rows.

    An accelerator's own attention kernel is opaque, so that FLOP are counted with the plain one.
    """
    key = str(
      [
        config.model,
        config.batch.seq_len,
        config.batch.images,
        config.optimizer,
        config.trainable,
        config.loss_chunk,
      ]
    )
    if key not in self._counted:
      where, alone = (
        slices.absent_devices(slices.find('v5e:1x1')),
        _ALONE | {'batch.size': config.optimizer.accumulate},
      )
      plain = self._make(changed(config, alone | {'model.attention': 'xla'}), where).trace()
      own = self._make(changed(config, alone), where).trace()
      self._counted[key] = (*arithmetic.count(plain), activations.saved_stacks(own))
    flops, again, saved = self._counted[key]
    times = config.batch.size / config.optimizer.accumulate
    return {part: number * times for part, number in flops.items()}, again * times, saved


_ALONE = {'mesh.data': 1, 'mesh.fsdp': 1, 'mesh.tensor': 1}


def changed(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
  """A copy of a config with some dotted settings replaced or added."""
  copy = ConfigDict(config.to_dict())
  for path, value in settings.items():
    *sections, name = path.split('.')
    functools.reduce(lambda section, key: section[key], sections, copy)[name] = value
  return copy.lock()
