"""RegMean: the matrix whose outputs are nearest to those of every input's matrix on its own data.

Jin et al. (arXiv 2212.09849) mix the matrices W_i of a linear layer by least squares: the result
minimizes sum(c_i * |X_i W - X_i W_i|^2) over the inputs X_i that the layer of each model has on its
data. Only the Gram matrices G_i = X_i^T X_i matter, which `mix_stats` computes.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.linalg

from sphinx_jax.core import errors

ALPHA = 0.9  # The paper's choice for large models.
# Added to the diagonal, as a share of it: weighs the plain mean, which decides without data.
_RIDGE = 1e-6
_BLOCK_BYTES = 32 << 20  # Of the rows or columns that are computed at a time.


def mix_matrix(
  matrices: Sequence[np.ndarray],
  coefficients: Sequence[float],
  grams: Sequence[Callable[[], np.ndarray]],
  alpha: float = ALPHA,
) -> np.ndarray:
  """Mixes the kernels of a linear layer.

  Args:
    matrices: [in,out], one per parent.
    coefficients: one per parent, positive.
    grams: functions that read the Gram matrix float32[in,in] of each parent; called once.
    alpha: factor of what is beside the diagonal of a Gram matrix, from 0 to 1. Less than 1 makes
      less of correlations of features, which few data do not determine.

  Returns:
    float32[in,out]: sum(c_i * G_i)^-1 * sum(c_i * G_i * W_i), computed as W_1 and differences from
    it, so that equal parents stay as they are. Beside the result, two Gram matrices are in memory.

  Raises:
    SphinxError: the sum of the Gram matrices is singular in float32.
  """
  first = matrices[0]
  columns = list(_slices(*first.shape[::-1]))
  result = np.zeros(first.shape, np.float32)  # Until the end, the right side of the equations.
  total = np.zeros((len(first), len(first)), np.float32)
  for matrix, share, read in zip(matrices, coefficients, grams):
    gram = read()
    for rows in _slices(*gram.shape):
      shrunk = _shrink(gram[rows], rows.start, alpha) * np.float32(share)
      total[rows] += shrunk
      if matrix is not first:
        for block in columns:
          result[rows, block] += shrunk @ _difference(matrix, first, block)
    del gram
  diagonal = total.diagonal()
  ridge = np.where(diagonal > 0, _RIDGE * diagonal, 1).astype(np.float32)
  total[np.diag_indices_from(total)] += ridge * np.float32(sum(coefficients))
  # With ones on the diagonal, features of other magnitudes do not cost digits.
  scale = 1 / np.sqrt(total.diagonal())
  factor = _factor(total, scale)
  for block in columns:
    differences = (
      np.float32(share) * _difference(matrix, first, block)
      for matrix, share in zip(matrices[1:], coefficients[1:])
    )
    right = (result[:, block] + ridge[:, None] * sum(differences)) * scale[:, None]
    solved = scipy.linalg.cho_solve((factor, False), right, overwrite_b=True, check_finite=False)
    result[:, block] = first[:, block].astype(np.float32) + scale[:, None] * solved
  return result


def _difference(matrix: np.ndarray, first: np.ndarray, columns: slice) -> np.ndarray:
  """Some columns of `matrix - first` in float32."""
  return matrix[:, columns].astype(np.float32) - first[:, columns].astype(np.float32)


def _slices(count: int, width: int) -> Iterator[slice]:
  """Cuts `count` rows of `width` numbers into blocks."""
  step = max(_BLOCK_BYTES // (4 * width), 1)
  for begin in range(0, count, step):
    yield slice(begin, min(begin + step, count))


def _shrink(block: np.ndarray, begin: int, alpha: float) -> np.ndarray:
  """Rows of a Gram matrix from `begin` on, with smaller numbers beside its diagonal."""
  shrunk = block * np.float32(alpha)
  rows = np.arange(len(block))
  shrunk[rows, begin + rows] = block[rows, begin + rows]
  return shrunk


def _factor(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """The Cholesky factor of a symmetric float32[in,in] times `scale` from both sides, in place."""
  matrix *= scale
  matrix *= scale[:, None]
  try:
    # LAPACK works in place on columns, and the transpose has them. It is the same matrix.
    factor, _ = scipy.linalg.cho_factor(matrix.T, overwrite_a=True, check_finite=False)
  except np.linalg.LinAlgError:
    raise errors.make(
      'RegMean',
      'Gram matrices whose sum is singular',
      'more inputs than features, or alpha below 1',
      'measure more --batches, or lower --alpha',
    ) from None
  return factor
