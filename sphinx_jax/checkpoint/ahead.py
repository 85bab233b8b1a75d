"""Reads ahead of what is being written, as long as the values are small: disk and processors work at the same time."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
BYTES = 256 << 20  # Of all values at one time; a larger one is alone.
_THREADS = 2  # More would only wait for one disk.


def ahead(reads: Sequence[tuple[int, Callable[[], T]]], threads: int = _THREADS) -> Iterator[T]:
  """The values of (bytes, read), in order; the next ones are read in threads while the caller has this one."""
  with ThreadPoolExecutor(threads) as pool:
    coming, held, submitted = collections.deque(), 0, 0
    for i, (nbytes, _) in enumerate(reads):
      while submitted < len(reads) and (
        submitted == i or (submitted - i <= threads and held + reads[submitted][0] <= BYTES)
      ):
        coming.append(pool.submit(reads[submitted][1]))
        held += reads[submitted][0]
        submitted += 1
      yield coming.popleft().result()  # No name here holds the value while others are read.
      held -= nbytes
