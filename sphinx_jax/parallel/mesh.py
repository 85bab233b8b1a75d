"""The device mesh. Its named axes always exist, so one device and a pod run the same code."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sphinx_jax.core import errors

AXES = ('data', 'fsdp', 'tensor', 'expert')
# Mesh shapes for any number of devices. An axis of -1 takes the devices that the others leave.
PRESETS = {
  # Training with the least memory: weights are all-gathered layer by layer.
  'fsdp': dict(data=1, fsdp=-1, tensor=1),
  # Training with a small batch per device: the arithmetic of a layer is split too.
  'fsdp_tensor': dict(data=1, fsdp=-1, tensor=4),
  # Decoding: weights stay where they are, activations move.
  'serving': dict(data=1, fsdp=1, tensor=-1),
  # Training of a mixture of 8 experts: each device keeps one of them, and activations move to it.
  'experts': dict(data=1, fsdp=-1, tensor=1, expert=8),
}


def make_mesh(
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  expert: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Builds a mesh over `data * fsdp * tensor * expert` devices.

  Args:
    data: number of copies of the model, each with its own part of the batch.
    fsdp: number of devices over which both the batch and the parameters are split.
    tensor: number of devices over which the arithmetic of one row is split.
    expert: number of devices over which the experts of a mixture are split, and the batch. One of
      the four may be -1, which stands for the devices that the others leave.
    devices: devices to choose from; None for all devices of this run. Devices of a described
      topology work too.

  Returns:
    Mesh with axes `AXES`. A single process may use fewer devices than it has.
    Several processes must use all of them.

  Raises:
    SphinxError: the devices do not suffice, or do not divide.
  """
  use_all = devices is None and jax.process_count() > 1
  devices = jax.devices() if devices is None else list(devices)
  given = (data, fsdp, tensor, expert)
  shape = _resolve(given, len(devices))
  needed = math.prod(shape)
  if min(shape) < 1 or needed > len(devices) or (use_all and needed != len(devices)):
    raise errors.make(
      'mesh ' + ' '.join(f'{axis}={size}' for axis, size in zip(AXES, given)),
      f'{len(devices)} {devices[0].platform} devices',
      'a multiple of the other axes, and at most one -1' if -1 in shape else f'{abs(needed)}',
      'change --config.mesh.data, fsdp, tensor or expert so that their product fits',
    )
  types, devices = (AxisType.Auto,) * len(AXES), devices[:needed]
  try:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
  except NotImplementedError:  # 8 devices are no product of whole axes of a torus of 4 x 4 x 4.
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=types)


def _resolve(shape: tuple[int, ...], devices: int) -> tuple[int, ...]:
  """Replaces a single -1 by the devices that the other axes leave, if they divide evenly."""
  others = math.prod(size for size in shape if size != -1)
  if shape.count(-1) != 1 or others < 1 or devices % others:
    return shape
  return tuple(devices // others if size == -1 else size for size in shape)
