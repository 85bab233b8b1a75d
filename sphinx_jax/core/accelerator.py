"""What JAX looks for at its start: with libtpu installed but no TPU, it would search for one, and warn at length."""

import glob
import importlib.util
import os

# What libtpu asks the machine about, answered, so that it neither waits nor warns where there is no TPU; and it may be
# loaded by several processes, for none of them owns a chip.
_ABSENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}


def has_tpu() -> bool:
  """Whether this machine has device files as a TPU's driver makes them."""
  return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def choose_platform() -> None:
  """Sets JAX_PLATFORMS=cpu where libtpu is there for its compiler alone; must run before JAX is imported.

  Nothing changes where JAX_PLATFORMS is set, libtpu is not installed, or a TPU is there or asked for.
  With another plugin (CUDA, ROCm) JAX goes on choosing by itself, and libtpu is only kept quiet.
  """
  asked = {'JAX_PLATFORMS', 'JAX_FORCE_TPU_INIT'} & set(os.environ)
  if asked or importlib.util.find_spec('libtpu') is None or has_tpu():
    return
  if importlib.util.find_spec('jax_plugins') is None:
    os.environ['JAX_PLATFORMS'] = 'cpu'
  else:
    quiet_libtpu()


def quiet_libtpu() -> None:
  """Prepares loading libtpu for its compiler on a machine without a TPU; what the environment says already stays."""
  for name, value in _ABSENT.items():
    os.environ.setdefault(name, value)
