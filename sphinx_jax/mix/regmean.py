"""RegMean: the matrix whose outputs are nearest to those of every input's matrix on its own data.

Jin et al. (arXiv 2212.09849) mix the matrices W_i of a linear layer by least squares: the result
minimizes sum(c_i * |X_i W - X_i W_i|^2) over the inputs X_i that the layer of each model has on its
data. Only the Gram matrices G_i = X_i^T X_i matter, which `mix_stats` computes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import scipy.linalg

from sphinx_jax.core import errors
from sphinx_jax.mix import linear
from sphinx_jax.mix.tensors import Array, Part, Tensor

ALPHA = 0.9  # The paper's choice for large models.
# Added to the diagonal, as a share of it: weighs the plain mean, which decides without data.
_RIDGE = 1e-6
_BLOCK_BYTES = 32 << 20  # Of the rows or columns that are computed at a time.


def measure(tensor: Tensor, options: Mapping) -> np.ndarray | None:
  """Mixes a kernel [in,*features] as a whole, see mix/methods.py.

  Returns:
    Its float32 numbers in row-major order. None: it is linear, as the tensor has no Gram matrices
    or only one parent.

  Raises:
    SphinxError: the sum of the Gram matrices is singular in float32.
  """
  if not tensor.grams or len(tensor.inputs) == 1:
    return None
  parts = [part.leaves for part in tensor.parts()]
  flat = [[np.asarray(leaf).reshape(-1) for leaf in leaves] for leaves in zip(*parts)]
  whole = [pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in flat]
  try:
    mixed = mix_matrix(whole, tensor.coefficients, tensor.grams, options['alpha'])
  except np.linalg.LinAlgError:
    raise errors.make(
      f'RegMean of {tensor.name}',
      'Gram matrices whose sum is singular',
      'more inputs than features, or alpha below 1',
      'measure more --batches, or lower --alpha',
    ) from None
  return mixed.reshape(-1)


def mix(
  part: Part,
  coefficients: Sequence[float],
  measured: np.ndarray | None,
  options: Mapping,
  dtype: np.dtype,
) -> Array:
  """Takes a part of what was mixed as a whole, see mix/methods.py."""
  if measured is None:
    return linear.mix_leaf(part.leaves, coefficients, dtype=dtype)
  return measured[part.start : part.start + part.size].reshape(part.leaves[0].shape).astype(dtype)


def mix_matrix(
  matrices: Sequence[np.ndarray],
  coefficients: Sequence[float],
  grams: Sequence[Callable[[], np.ndarray]],
  alpha: float = ALPHA,
) -> np.ndarray:
  """Mixes the kernels of a linear layer.

  Args:
    matrices: [in,*features] of each parent, or the same numbers in a row.
    coefficients: one per parent, positive.
    grams: functions that read the Gram matrix float32[in,in] of each parent; called once.
    alpha: factor of what is beside the diagonal of a Gram matrix, from 0 to 1. Less than 1 makes
      less of correlations of features, which few data do not determine.

  Returns:
    float32[in,out]: sum(c_i * G_i)^-1 * sum(c_i * G_i * W_i), computed as W_1 and differences from
    it, so that equal parents stay as they are. Beside the result, two Gram matrices are in memory.

  Raises:
    LinAlgError: the sum of the Gram matrices is singular in float32.
  """
  kernels, total, result = [], None, None
  for number, (share, read) in enumerate(zip(coefficients, grams)):
    gram = read()
    if number == 0:
      kernels = [matrix.reshape(len(gram), -1) for matrix in matrices]
      columns = list(_slices(*kernels[0].shape[::-1]))
      total = np.zeros_like(gram)
      result = np.zeros(kernels[0].shape, np.float32)  # First, the right side of the equations.
    for rows in _slices(*gram.shape):
      shrunk = _shrink(gram[rows], rows.start, alpha) * np.float32(share)
      total[rows] += shrunk
      for block in columns if number else ():
        result[rows, block] += shrunk @ _difference(kernels, number, block)
    del gram  # Before the next one is read.
  diagonal = total.diagonal()
  ridge = np.where(diagonal > 0, _RIDGE * diagonal, 1).astype(np.float32)
  total[np.diag_indices_from(total)] += ridge * np.float32(sum(coefficients))
  # With ones on the diagonal, features of other magnitudes do not cost digits.
  scale = 1 / np.sqrt(total.diagonal())
  factor = _factor(total, scale)
  for block in columns:
    differences = (
      np.float32(share) * _difference(kernels, number, block)
      for number, share in enumerate(coefficients)
    )
    right = (result[:, block] + ridge[:, None] * sum(differences)) * scale[:, None]
    solved = scipy.linalg.cho_solve((factor, False), right, overwrite_b=True, check_finite=False)
    result[:, block] = kernels[0][:, block].astype(np.float32) + scale[:, None] * solved
  return result


def _difference(kernels: Sequence[np.ndarray], number: int, columns: slice) -> np.ndarray:
  """Some columns of a kernel's difference from the first one, in float32."""
  return kernels[number][:, columns].astype(np.float32) - kernels[0][:, columns].astype(np.float32)


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
  # LAPACK works in place on columns, and the transpose has them. It is the same matrix.
  factor, _ = scipy.linalg.cho_factor(matrix.T, overwrite_a=True, check_finite=False)
  return factor
