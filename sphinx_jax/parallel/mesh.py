"""The device mesh: three named axes from the start, so that one device and a pod run the same code."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from sphinx_jax.core import errors

AXES = ('data', 'fsdp', 'tensor')
# Shapes for any number of devices: one axis takes what the others leave (-1).
PRESETS = {
  'fsdp': dict(
    data=1, fsdp=-1, tensor=1
  ),  # training: least memory, weights are gathered layer by layer
  'fsdp_tensor': dict(
    data=1, fsdp=-1, tensor=4
  ),  # training with few rows a device: a layer's arithmetic is split too
  'serving': dict(
    data=1, fsdp=1, tensor=-1
  ),  # decoding: weights stay where they are, activations travel
}


def make_mesh(
  data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh over `data * fsdp * tensor` devices.

  Args:
    data: copies of the model, each with its own rows.
    fsdp: devices over which rows *and* parameters are split.
    tensor: devices over which the arithmetic of one row is split. One of the three may be -1: what the others leave.
    devices: to take them from; None: all of this run. They may be those of a described topology.

  Returns:
    Mesh with axes ('data', 'fsdp', 'tensor'). A single process may use fewer devices than it sees; several processes
    must use all.

  Raises:
    SphinxError: when the devices are not there.
  """
  everything = devices is None
  devices = jax.devices() if everything else list(devices)
  shape = _filled((data, fsdp, tensor), len(devices))
  needed = int(np.prod(shape))
  if (
    min(shape) < 1
    or needed > len(devices)
    or (everything and jax.process_count() > 1 and needed != len(devices))
  ):
    raise errors.make(
      f'mesh data={data} fsdp={fsdp} tensor={tensor}',
      f'{len(devices)} {devices[0].platform} devices',
      f'{abs(needed)}'
      if -1 not in shape
      else 'a multiple of the axes that are given, and one -1 at most',
      'change --config.mesh.data, fsdp or tensor so that their product fits',
    )
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:needed])


def _filled(shape: tuple[int, ...], devices: int) -> tuple[int, ...]:
  """The shape with its -1, if it is the only one, replaced by what the other axes leave; unchanged where nothing fits."""
  others = int(np.prod([size for size in shape if size != -1]))
  if shape.count(-1) != 1 or others < 1 or devices % others:
    return shape
  return tuple(devices // others if size == -1 else size for size in shape)
