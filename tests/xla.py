"""XLA's flags for tests and their child processes; must not import jax, which reads them."""

import importlib.metadata
import os

# The newer emitter of fused operations takes half to three quarters of the time in which the
# programs of the tests compile. The older one computes the same, more slowly. A program compiled in
# parts, on several threads, takes a quarter more CPU time, and the tests keep the cores busy. XLA
# ends a process that has a flag it does not know, so other versions do without.
_KNOWN = importlib.metadata.version('jaxlib').startswith('0.10.')
_FLAGS = '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
FLAGS = _FLAGS if _KNOWN else ''


def flags(devices: int = 1) -> str:
  """The value of XLA_FLAGS for this number of CPU devices."""
  return f'{FLAGS} --xla_force_host_platform_device_count={devices}'


def environment(devices: int = 1) -> dict[str, str]:
  """The environment of a child process; with one device, that of a user's machine."""
  return os.environ | {'XLA_FLAGS': flags(devices)}
