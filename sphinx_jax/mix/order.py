"""Order statistics of differences to a base: which of them are the largest, exactly.

Nothing is sorted: the bits of a positive float, read as an integer, grow with it. A first pass
counts the upper halves of the bits, a second one the lower halves beside the upper half that the
wanted number has. So a tensor of any size takes the memory of a piece.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sphinx_jax.mix.tensors import Tensor

_PIECE = 1 << 18  # Numbers of a piece, which fits into the cache of a core.
_HALF = 1 << 16


def magnitudes(tensor: Tensor, ranks: Sequence[int]) -> np.ndarray:
  """Returns the magnitudes |W_i - base| of some ranks.

  Args:
    tensor: with a base; its parts are read twice, on the host.
    ranks: positions in the ascending order of all magnitudes of an input.

  Returns:
    float32[inputs,ranks].
  """
  upper = np.zeros((len(tensor.inputs), _HALF), np.int64)
  for number, bits in _bits(tensor):
    upper[number] += _count(bits >> 16)
  ends = upper.cumsum(axis=1)
  of_rank = [np.searchsorted(row, ranks, side='right') for row in ends]
  lower = {(i, half): np.zeros(_HALF, np.int64) for i, row in enumerate(of_rank) for half in row}
  for number, bits in _bits(tensor):
    halves = bits >> 16
    for (i, half), counts in lower.items():
      if i == number:
        counts += _count(bits[halves == half] & (_HALF - 1))
  found = np.empty((len(tensor.inputs), len(ranks)), np.uint32)
  for i, row in enumerate(of_rank):
    for j, (rank, half) in enumerate(zip(ranks, row)):
      before = ends[i, half] - upper[i, half]
      low = np.searchsorted(lower[i, half].cumsum(), rank - before, side='right')
      found[i, j] = half * _HALF + low
  return found.view(np.float32)


def _bits(tensor: Tensor) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (number of an input, bits of |W_i - base| as uint32) piece by piece."""
  for part in tensor.parts():
    base, *leaves = (np.asarray(leaf).reshape(-1) for leaf in (part.base, *part.leaves))
    for start in range(0, base.size, _PIECE):
      piece = slice(start, start + _PIECE)
      origin = base[piece].astype(np.float32)
      for number, leaf in enumerate(leaves):
        yield number, np.abs(leaf[piece].astype(np.float32) - origin).view(np.uint32)


def _count(halves: np.ndarray) -> np.ndarray:
  return np.bincount(halves.astype(np.intp), minlength=_HALF)
