"""TPU slices by name, with what their chips can do; `find` answers a wrong name with the right ones."""

import dataclasses
import math
from typing import Any

from sphinx_jax.core import errors

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which JAX sees as one device (v4 and v5p join their two cores: megacore).

  Attributes:
    flops: peak of bfloat16 products, FLOP/s.
    hbm: bytes of HBM that a program may use, as libtpu 0.0.42.1 refuses more with; a little less than what is sold.
    bandwidth: of HBM, bytes/s.
    ici: interconnect, bytes/s in one direction over all links of a chip (half of what "bidirectional" counts).
    cores: TensorCores, which accelerator types of v4 and v5p count.
    accelerator: gcloud's accelerator type up to the number.
  """

  flops: float
  hbm: int
  bandwidth: float
  ici: float
  cores: int
  accelerator: str


# Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "key specifications" (TFLOP/s in bf16, HBM bandwidth, ICI).
# v4's links are 6 x 50 GB/s (arXiv 2304.01433); the others are half of the bidirectional 400, 1200 and 800 GB/s.
CHIPS = {
  'v4': Chip(275e12, int(30.75 * GIB), 1200e9, 300e9, 2, 'v4'),
  'v5e': Chip(197e12, int(15.75 * GIB), 819e9, 200e9, 1, 'v5litepod'),
  'v5p': Chip(459e12, int(95.74 * GIB), 2765e9, 600e9, 2, 'v5p'),
  'v6e': Chip(918e12, int(31.25 * GIB), 1638e9, 400e9, 1, 'v6e'),
}
# The shapes in which chips are lent, smallest first.
_CUBES = (
  '2x2x1',
  '2x2x2',
  '2x2x4',
  '2x4x4',
  '4x4x4',
  '4x4x8',
  '4x8x8',
  '8x8x8',
  '8x8x16',
  '8x16x16',
)
_SQUARES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
SHAPES = {'v4': _CUBES, 'v5e': _SQUARES, 'v5p': (*_CUBES, '16x16x16', '16x16x24'), 'v6e': _SQUARES}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice: `name` as libtpu takes it ('v5p:4x4x4'), number of chips (JAX devices), and the kind of chip."""

  name: str
  devices: int
  chip: Chip

  @property
  def accelerator(self) -> str:
    """gcloud's --accelerator-type ('v5p-128'): v4 and v5p count cores, v5e and v6e chips."""
    return f'{self.chip.accelerator}-{self.devices * self.chip.cores}'


def slices(kind: str) -> list[Slice]:
  """All slices of a kind of chip ('v5p'), smallest first."""
  return [
    Slice(f'{kind}:{shape}', math.prod(map(int, shape.split('x'))), CHIPS[kind])
    for shape in SHAPES[kind]
  ]


def find(name: str) -> Slice:
  """The slice of a topology name ('v5p:4x4x4') or an accelerator type ('v5p-128').

  Raises:
    SphinxError: a slice that does not exist: lists those that do.
  """
  everything = [one for kind in CHIPS for one in slices(kind)]
  for one in everything:
    if name in (one.name, one.accelerator):
      return one
  kind = name.partition(':')[0].partition('-')[0]
  near = slices(kind) if kind in CHIPS else everything
  raise errors.unknown('--topology', name, [one.name for one in near])


@dataclasses.dataclass(frozen=True)
class Absent:
  """Stands for a device where there is no compiler to describe it: shapes and layouts need no more."""

  id: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  platform: str = 'tpu'
  device_kind: str = 'absent'
  process_index: int = 0


def absent_devices(where: Slice) -> list[Absent]:
  """Devices of a slice for `Program` without libtpu; nothing can be compiled for them."""
  x, y, z = (*map(int, where.name.partition(':')[2].split('x')), 1)[:3]
  return [Absent(i, (i % x, i // x % y, i // (x * y))) for i in range(x * y * z)]


def devices(where: Slice) -> list[Any]:
  """Devices of a slice for `Program`, as libtpu describes them; programs can be compiled for them.

  Raises:
    RuntimeError: libtpu is not installed.
  """
  from jax.experimental import (
    topologies,
  )  # It loads libtpu, which `accelerator.quiet_libtpu` must come before.

  settings: dict[str, Any] = {}
  if where.name.startswith('v4'):
    settings['chip_config_name'] = 'megacore'
  if where.devices == 1:
    settings['chips_per_host_bounds'] = (1, 1, 1)
  return topologies.get_topology_desc(platform='tpu', topology_name=where.name, **settings).devices
