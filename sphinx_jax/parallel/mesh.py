"""The device mesh: three named axes from the start, so that one device and a pod run the same code."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from sphinx_jax.core import errors

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh over `data * fsdp * tensor` devices.

  Args:
    data: copies of the model, each with its own rows.
    fsdp: devices over which rows *and* parameters are split.
    tensor: devices over which the arithmetic of one row is split.

  Returns:
    Mesh with axes ('data', 'fsdp', 'tensor'). A single process may use fewer devices than it sees; several processes
    must use all.

  Raises:
    SphinxError: when the devices are not there.
  """
  shape = (data, fsdp, tensor)
  needed, devices = int(np.prod(shape)), jax.devices()
  if min(shape) < 1 or needed > len(devices) or (jax.process_count() > 1 and needed != len(devices)):
    raise errors.make(f'mesh data={data} fsdp={fsdp} tensor={tensor}', f'{len(devices)} {devices[0].platform} devices',
                      f'{needed}', 'change --config.mesh.data, fsdp or tensor so that their product fits')
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:needed])
