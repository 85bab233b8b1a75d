"""The choice of JAX's platform on a machine with libtpu but without a TPU.

libtpu is installed there for its compiler (`sphinx_jax.plan`). JAX would search for a TPU for
a long time and print warnings.
"""

import glob
import importlib.util
import os

# Answers to what libtpu asks the machine about. With them it neither waits nor warns without a TPU,
# and several processes can load it, since none of them owns a chip.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}


def has_tpu() -> bool:
  """Returns whether this machine has the device files of a TPU's driver."""
  return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def choose_platform() -> None:
  """Sets JAX_PLATFORMS=cpu if libtpu is installed without a TPU. Call it before JAX is imported.

  Nothing changes if JAX_PLATFORMS or JAX_FORCE_TPU_INIT is set, libtpu is not installed, or there
  is a TPU. With another plugin (CUDA, ROCm) JAX still chooses by itself, and libtpu is only kept
  from waiting and warning.
  """
  if 'JAX_PLATFORMS' in os.environ or 'JAX_FORCE_TPU_INIT' in os.environ:
    return
  if importlib.util.find_spec('libtpu') is None or has_tpu():
    return
  if importlib.util.find_spec('jax_plugins') is None:
    os.environ['JAX_PLATFORMS'] = 'cpu'
  else:
    quiet_libtpu()


def quiet_libtpu() -> None:
  """Keeps libtpu from waiting and warning on a machine without a TPU.

  Variables that are set in the environment keep their values.
  """
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
