"""What the numbers of a checkpoint are: their hash, and whether they are numbers at all."""

from typing import Any

import numpy as np
import xxhash


class ContentHash:
  """The hash of a tree of arrays, independent of its chunks.

  It is the xxh3_64 of one line per array, `path dtype shape xxh3_64`, in the order of the lines.
  The hash in a line is that of the array's bytes in row-major order.
  """

  def __init__(self) -> None:
    self._arrays: dict[str, xxhash.xxh3_64] = {}

  def update(self, path: str, array: Any, part: np.ndarray) -> None:
    """Adds the next part of an array.

    Args:
      path: path of the array.
      array: anything with the shape and dtype of the whole array.
      part: its next numbers in row-major order.
    """
    name = f'{path} {array.dtype} {tuple(array.shape)}'
    if name not in self._arrays:
      self._arrays[name] = xxhash.xxh3_64()
    self._arrays[name].update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))

  def hexdigest(self) -> str:
    """Returns 16 hexadecimal digits."""
    lines = (f'{name} {self._arrays[name].hexdigest()}' for name in sorted(self._arrays))
    return xxhash.xxh3_64('\n'.join(lines).encode()).hexdigest()


def is_finite(array: np.ndarray) -> bool:
  """Whether all of an array's floats are finite; without a copy, which `np.isfinite` would make."""
  if not array.size or array.dtype.kind in 'biu':
    return True
  size = array.dtype.itemsize
  largest = np.array([np.inf, -np.inf]).astype(array.dtype)
  # As integers, the bits of a number grow with its size: signed up to inf, unsigned up to -inf.
  return bool(
    array.view(f'i{size}').max() < largest.view(f'i{size}')[0]
    and array.view(f'u{size}').max() < largest.view(f'u{size}')[1]
  )
