"""Memory of programs that work through many large arrays, one after the other."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # Names of glibc's mallopt.
_BYTES = 1 << 30


def reuse() -> None:
  """Keeps freed arrays of up to 1 GiB for the next ones.

  glibc gives large blocks back to the system at once, and every page of the next one is a fault: for a stream of tensors
  that costs as much as reading them (benchmarks/RESULTS.md). Without glibc nothing changes.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  mallopt(_MMAP_THRESHOLD, _BYTES)
  mallopt(_TRIM_THRESHOLD, _BYTES)
  mallopt(_ARENA_MAX, 1)  # Those of other threads have no room for large blocks.
