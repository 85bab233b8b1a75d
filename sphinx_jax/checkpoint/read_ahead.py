"""Reads values in the background, bounded by their size in bytes.

`core.prefetch.Prefetch` has one thread and a number of items. Tensors differ in size by a factor of
a thousand, so here the bound is in bytes, and several threads read.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
MAX_BYTES = 256 << 20  # Of all values in memory together. A larger value is read alone.
_THREADS = 2  # More threads would only wait for the same disk.


def read_ahead(
  reads: Sequence[tuple[int, Callable[[], T]]], threads: int = _THREADS
) -> Iterator[T]:
  """Yields the results of several reads in order, and reads the next ones in threads meanwhile.

  Args:
    reads: pairs of a size in bytes and a function that returns the value.
    threads: number of reads at a time.

  Raises:
    Exception: that of a read, when its value is due.
  """
  with ThreadPoolExecutor(threads) as pool:
    pending = collections.deque()
    pending_bytes, submitted = 0, 0
    for current, (nbytes, _) in enumerate(reads):
      while submitted < len(reads):
        next_bytes, read = reads[submitted]
        fits = submitted - current <= threads and pending_bytes + next_bytes <= MAX_BYTES
        if submitted != current and not fits:
          break
        pending.append(pool.submit(read))
        pending_bytes += next_bytes
        submitted += 1
      # Not bound to a name, which would keep the value in memory while others are read.
      yield pending.popleft().result()
      pending_bytes -= nbytes
