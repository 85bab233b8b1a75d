"""One read ahead of what is being written, as long as both are small: disk and processor work at the same time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
_BYTES = 256 << 20  # Of one value and the next together; larger ones are read when the one before is done with.


def ahead(reads: Sequence[tuple[int, Callable[[], T]]]) -> Iterator[T]:
  """The values of (bytes, read), in order; the next is read in a thread while the caller has this one."""
  with ThreadPoolExecutor(1) as pool:
    future = None
    for i, (nbytes, read) in enumerate(reads):
      value = read() if future is None else future.result()
      small = i + 1 < len(reads) and nbytes + reads[i + 1][0] <= _BYTES
      future = pool.submit(reads[i + 1][1]) if small else None
      yield value
      value = None  # Not held while the next one is read.
