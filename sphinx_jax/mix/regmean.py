"""RegMean: the matrix whose outputs are nearest to those of every input's matrix on its own data.

Jin et al. (arXiv 2212.09849) mix the matrices W_i of a linear layer by least squares: the result
minimizes sum(c_i * |X_i W - X_i W_i|^2) for the inputs X_i that each model's layer had on its data.
Only the Gram matrices G_i = X_i^T X_i matter. `mix_stats` computes them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.linalg

from sphinx_jax.core import errors
from sphinx_jax.mix import weights

ALPHA = 0.9  # The paper's choice for large models.
# Added to the diagonal, as a share of it: weighs the plain mean, which decides without data.
_RIDGE = 1e-6

# Blocks of the rows of a Gram matrix, float32[rows,in], that cover it in order.
Blocks = Iterable[np.ndarray]


def mix_matrix(
  matrices: Sequence[np.ndarray],
  coefficients: Sequence[float],
  grams: Sequence[Blocks],
  alpha: float = ALPHA,
  dtype: Any = None,
) -> np.ndarray:
  """Mixes one kernel of a linear layer, or some of its columns.

  Args:
    matrices: [in,*features], one per parent.
    coefficients: one per parent, at least 0.
    grams: of each parent. An array [in,in] is one, as a list with itself: [gram].
    alpha: factor of what is not on the diagonal of a Gram matrix, from 0 to 1. Less than 1 bounds
      the change of features that are correlated.
    dtype: dtype of the result; None: the first matrix's.

  Returns:
    [in,*features]: sum(c_i * G_i)^-1 * sum(c_i * G_i * W_i), computed in float32 as W_1 and
    differences from it, so that equal parents stay as they are. In memory are one Gram matrix and
    four arrays like the result.

  Raises:
    SphinxError: the sum of the Gram matrices is singular in float32.
  """
  dtype = weights.out_dtype(matrices[0].dtype, dtype)
  used = [row for row in zip(matrices, coefficients, grams) if row[1] != 0]
  if len(used) == 1:
    return np.asarray(used[0][0]).astype(dtype)
  shape = used[0][0].shape
  first = _as_matrix(used[0][0])
  total = np.zeros((len(first), len(first)), np.float32)
  moment, mean = np.zeros_like(first), np.zeros_like(first)
  for number, (matrix, share, blocks) in enumerate(used):
    move = _as_matrix(matrix) - first if number else None
    if move is not None:
      mean += np.float32(share) * move
    begin = 0
    for block in blocks:
      shrunk = _shrink(block, begin, alpha) * np.float32(share)
      rows = slice(begin, begin + len(block))
      total[rows] += shrunk
      if move is not None:
        moment[rows] += shrunk @ move
      begin = rows.stop
  diagonal = total.diagonal()
  ridge = np.where(diagonal > 0, _RIDGE * diagonal, 1).astype(np.float32)
  total[np.diag_indices_from(total)] += ridge * np.float32(sum(share for _, share, _ in used))
  moment += ridge[:, None] * mean
  return (first + _solve(total, moment)).reshape(shape).astype(dtype)


def _as_matrix(matrix: np.ndarray) -> np.ndarray:
  """[in,*features] -> float32[in,features]."""
  return np.asarray(matrix).reshape(len(matrix), -1).astype(np.float32)


def _shrink(block: np.ndarray, begin: int, alpha: float) -> np.ndarray:
  """Rows of a Gram matrix from `begin` on, with smaller numbers beside its diagonal."""
  shrunk = block * np.float32(alpha)
  rows = np.arange(len(block))
  shrunk[rows, begin + rows] = block[rows, begin + rows]
  return shrunk


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
  """matrix^-1 * right of a symmetric positive float32[in,in]; both arguments are overwritten."""
  # With ones on the diagonal, features of other magnitudes do not cost digits.
  scale = 1 / np.sqrt(matrix.diagonal())
  matrix *= scale
  matrix *= scale[:, None]
  right *= scale[:, None]
  try:
    factor = scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False)
  except np.linalg.LinAlgError:
    raise errors.make(
      'RegMean',
      'Gram matrices whose sum is singular',
      'more inputs than features, or alpha below 1',
      'compute them on more --batches, or lower alpha',
    ) from None
  solved = scipy.linalg.cho_solve(factor, right, overwrite_b=True, check_finite=False)
  solved *= scale[:, None]
  return solved
