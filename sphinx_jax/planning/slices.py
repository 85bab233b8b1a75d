"""TPU slices by name, and the peak rates of their chips. A device by its memory alone."""

import dataclasses
import math
import re
from typing import Any

import jax
import psutil

from sphinx_jax.core import errors

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which is one JAX device (v4 and v5p join their two cores: megacore).

  Attributes:
    flops: peak of bfloat16 products, FLOP/s; nan if the chip is not known.
    hbm: bytes of HBM that a program may use: the limit in the errors of libtpu 0.0.42.1, a little
      less than the nominal size.
    bandwidth: HBM bandwidth, bytes/s; nan if the chip is not known.
    ici: interconnect bandwidth, bytes/s in one direction over all links of a chip (half of the
      "bidirectional" figure); nan if the chip is not known.
    cores: number of TensorCores that the accelerator type counts (v4 and v5p).
    accelerator: gcloud's accelerator type without the number.
  """

  flops: float
  hbm: int
  bandwidth: float
  ici: float
  cores: int
  accelerator: str


# Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "key specifications" (bf16 TFLOP/s, HBM
# bandwidth, ICI). v4 has 6 links of 50 GB/s (arXiv 2304.01433). The ICI of the others is half of
# the bidirectional 400, 1200 and 800 GB/s.
CHIPS = {
  'v4': Chip(275e12, int(30.75 * GIB), 1200e9, 300e9, 2, 'v4'),
  'v5e': Chip(197e12, int(15.75 * GIB), 819e9, 200e9, 1, 'v5litepod'),
  'v5p': Chip(459e12, int(95.74 * GIB), 2765e9, 600e9, 2, 'v5p'),
  'v6e': Chip(918e12, int(31.25 * GIB), 1638e9, 400e9, 1, 'v6e'),
}
_UNKNOWN = Chip(math.nan, 0, math.nan, math.nan, 1, 'device')
# The shapes that can be booked, smallest first.
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
  """A TPU slice.

  Attributes:
    name: name of the topology as libtpu takes it ('v5p:4x4x4').
    devices: number of chips, which are JAX devices.
    chip: the kind of chip.
  """

  name: str
  devices: int
  chip: Chip

  @property
  def accelerator(self) -> str:
    """gcloud's --accelerator-type ('v5p-128'). v4 and v5p count cores, v5e and v6e count chips."""
    return f'{self.chip.accelerator}-{self.devices * self.chip.cores}'


def slices(kind: str) -> list[Slice]:
  """Returns all slices of a kind of chip ('v5p'), smallest first."""
  return [
    Slice(f'{kind}:{shape}', math.prod(map(int, shape.split('x'))), CHIPS[kind])
    for shape in SHAPES[kind]
  ]


def find(name: str) -> Slice:
  """Returns the slice of a topology name ('v5p:4x4x4') or an accelerator type ('v5p-128').

  Raises:
    SphinxError: there is no such slice; lists those of the same kind of chip.
  """
  every_slice = [tpu_slice for kind in CHIPS for tpu_slice in slices(kind)]
  for tpu_slice in every_slice:
    if name in (tpu_slice.name, tpu_slice.accelerator):
      return tpu_slice
  kind = name.partition(':')[0].partition('-')[0]
  choices = slices(kind) if kind in CHIPS else every_slice
  raise errors.unknown('--topology', name, [tpu_slice.name for tpu_slice in choices])


THIS = 'this device'


def this_device() -> Slice:
  """Returns the first device of this machine; a CPU has all of the machine's memory."""
  stats = jax.devices()[0].memory_stats() or {}
  size = stats.get('bytes_limit', psutil.virtual_memory().total)
  return Slice(THIS, 1, dataclasses.replace(_UNKNOWN, hbm=size))


_UNITS = {'GiB': 2**30, 'MiB': 2**20, 'GB': 10**9, 'MB': 10**6}


def of_memory(text: str) -> Slice:
  """Returns one device of which nothing but the memory is known: no compiler, no rates.

  Args:
    text: its usable memory, such as '16GiB' or '24 GB' (a thousand million bytes each).

  Raises:
    SphinxError: the text is not a size.
  """
  match = re.fullmatch(r'(\d+(?:\.\d+)?) ?(GiB|MiB|GB|MB)', text.strip())
  size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
  if not size:
    raise errors.make('--memory', repr(text), 'a number with GiB or GB', '--memory=16GiB')
  return Slice(f'{text.strip()}:1x1', 1, dataclasses.replace(_UNKNOWN, hbm=size))


@dataclasses.dataclass(frozen=True)
class AbsentDevice:
  """Stands for a device when no compiler describes it; shapes and shardings need no more."""

  id: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  platform: str = 'tpu'
  device_kind: str = 'absent'
  process_index: int = 0


def absent_devices(tpu_slice: Slice) -> list[AbsentDevice]:
  """Returns devices of a slice for `Program` without libtpu; nothing can be compiled for them."""
  if tpu_slice.name == THIS:
    return [AbsentDevice(0, (0, 0, 0))]
  shape = [int(size) for size in tpu_slice.name.partition(':')[2].split('x')]
  x, y, z = shape if len(shape) == 3 else (*shape, 1)
  return [AbsentDevice(i, (i % x, i // x % y, i // (x * y))) for i in range(x * y * z)]


def devices(tpu_slice: Slice) -> list[Any]:
  """Returns devices of a slice for `Program`, to compile for: as libtpu describes them, or ours.

  Raises:
    RuntimeError: libtpu is not installed.
  """
  if tpu_slice.name == THIS:
    return jax.devices()[:1]
  # This import loads libtpu, so `accelerator.quiet_libtpu` must have been called before.
  from jax.experimental import topologies

  settings: dict[str, Any] = {}
  if tpu_slice.name.startswith('v4'):
    settings['chip_config_name'] = 'megacore'
  if tpu_slice.devices == 1:
    settings['chips_per_host_bounds'] = (1, 1, 1)
  topology = topologies.get_topology_desc(platform='tpu', topology_name=tpu_slice.name, **settings)
  return topology.devices
