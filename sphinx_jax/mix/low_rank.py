"""The mix of adapters: the sum of several low-rank matrices as one of a rank that is asked for.

Adapters (LoRA, arXiv 2106.09685) of one matrix add a_i @ b_i to it. Their mix is the sum of
c_i * a_i @ b_i, which is the product of the factors side by side: its rank is the sum of the ranks.
The best approximation of a lower rank keeps the largest singular values (Eckart and Young, 1936).
They are those of a small core matrix, so that the sum itself is never made.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mixed(NamedTuple):
  """An approximation of a sum, or a stack of them.

  Attributes:
    a: float64[...,in,rank].
    b: float64[...,rank,out].
    error: squared Frobenius norm of what the sum has beyond a @ b.
    size: squared Frobenius norm of the sum.
  """

  a: np.ndarray
  b: np.ndarray
  error: float
  size: float


def mix(
  factors: Sequence[tuple[np.ndarray, np.ndarray]], coefficients: Sequence[float], rank: int
) -> Mixed:
  """Approximates the sum of c_i * a_i @ b_i.

  Args:
    factors: pairs of a_i [...,in,r_i] and b_i [...,r_i,out]. Leading dimensions are stacked layers.
    coefficients: c_i.
    rank: of the approximation. It is lower if the sum of the ranks or a side of the matrix is.

  Returns:
    The approximation with the least error. Its singular values are shared evenly between a and b.
  """
  wide = [
    (a.astype(np.float64), c * b.astype(np.float64)) for (a, b), c in zip(factors, coefficients)
  ]
  a = np.concatenate([a for a, _ in wide], axis=-1)
  b = np.concatenate([b for _, b in wide], axis=-2)
  columns, left = np.linalg.qr(a)
  rows, right = np.linalg.qr(_transpose(b))
  u, values, v = np.linalg.svd(left @ _transpose(right), full_matrices=False)
  root = np.sqrt(values[..., None, :rank])
  return Mixed(
    (columns @ u[..., :rank]) * root,
    _transpose((rows @ _transpose(v)[..., :rank]) * root),
    float((values[..., rank:] ** 2).sum()),
    float((values**2).sum()),
  )


def _transpose(matrix: np.ndarray) -> np.ndarray:
  return np.swapaxes(matrix, -1, -2)
