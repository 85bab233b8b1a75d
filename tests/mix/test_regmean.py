import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import linear, methods, regmean, weights
from sphinx_jax.mix.tensors import Part, Tensor


def drawn(inputs: int = 6, outputs: int = 4, rows: int = 40, seed: int = 0):
  """Two parents: inputs [rows,in], whose features are correlated, and matrices [in,out]."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  data = [draw(rows, inputs) @ draw(inputs, inputs) for _ in range(2)]
  return data, [draw(inputs, outputs) for _ in range(2)]


def grams(data: list[np.ndarray]) -> list:
  return [lambda x=x: x.T @ x for x in data]


@pytest.mark.parametrize('shares', [(0.5, 0.5), (0.2, 0.8)])
def test_it_solves_the_least_squares_that_it_promises(shares):
  data, matrices = drawn()
  roots = np.sqrt(shares)
  stacked = np.concatenate([root * x for root, x in zip(roots, data)])
  outputs = np.concatenate([root * (x @ w) for root, x, w in zip(roots, data, matrices)])
  expected, *_ = np.linalg.lstsq(np.float64(stacked), np.float64(outputs), rcond=None)
  mixed = regmean.mix_matrix(matrices, shares, grams(data), alpha=1.0)
  np.testing.assert_allclose(mixed, expected, atol=1e-4)


def test_alpha_shrinks_what_is_beside_the_diagonal():
  data, matrices = drawn()
  shrunk = []
  for read in grams(data):
    gram = read()
    off = gram * (1 - np.eye(len(gram)))
    shrunk.append(np.float64(0.7 * off + np.diag(np.diag(gram))))
  expected = np.linalg.solve(sum(shrunk), sum(g @ w for g, w in zip(shrunk, matrices)))
  mixed = regmean.mix_matrix(matrices, (0.5, 0.5), grams(data), alpha=0.7)
  np.testing.assert_allclose(mixed, expected, atol=1e-4)


def test_blocks_change_nothing(monkeypatch):
  data, matrices = drawn(outputs=5)
  mixed = regmean.mix_matrix(matrices, (0.4, 0.6), grams(data))
  monkeypatch.setattr(regmean, '_BLOCK_BYTES', 4 * 6 * 2)
  np.testing.assert_allclose(
    regmean.mix_matrix(matrices, (0.4, 0.6), grams(data)), mixed, atol=1e-5
  )


def test_features_without_data_get_the_plain_mean():
  data, matrices = drawn()
  for x in data:
    x[:, [1, 4]] = 0
  mixed = regmean.mix_matrix(matrices, (0.25, 0.75), grams(data))
  expected = 0.25 * matrices[0] + 0.75 * matrices[1]
  np.testing.assert_allclose(mixed[[1, 4]], expected[[1, 4]], atol=1e-5)
  nothing = [lambda: np.zeros((6, 6), np.float32)] * 2
  np.testing.assert_allclose(
    regmean.mix_matrix(matrices, (0.25, 0.75), nothing), expected, atol=1e-5
  )


def test_features_of_other_magnitudes_cost_no_digits():
  data, matrices = drawn()
  mixed = regmean.mix_matrix(matrices, (0.5, 0.5), grams(data))
  scales = np.float32([1e3, 1, 1, 1e2, 1, 1])
  scaled = regmean.mix_matrix(
    [w / scales[:, None] for w in matrices], (0.5, 0.5), grams([x * scales for x in data])
  )
  np.testing.assert_allclose(scaled * scales[:, None], mixed, atol=2e-2)


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_equal_parents_keep_the_bits(dtype):
  data, matrices = drawn()
  matrix = matrices[0].astype(dtype)
  mixed = regmean.mix_matrix([matrix, matrix.copy()], (0.3, 0.7), grams(data))
  assert mixed.astype(dtype).tobytes() == matrix.tobytes()


def tensor(matrices, reads, parts=1) -> Tensor:
  cut = [np.array_split(matrix, parts) for matrix in matrices]
  starts = np.cumsum([0, *(piece.size for piece in cut[0])])
  pieces = [Part(leaves, start=start) for leaves, start in zip(zip(*cut), starts)]
  numbers = list(range(len(matrices)))
  shares = [1 / len(matrices)] * len(matrices)
  return Tensor('kernel', matrices[0].size, numbers, shares, lambda: pieces, reads)


@pytest.mark.parametrize('parts', [1, 3])
def test_a_kernel_with_heads_is_mixed_as_a_matrix(parts):
  data, matrices = drawn(outputs=6)
  expected = regmean.mix_matrix(matrices, (0.5, 0.5), grams(data))
  whole = tensor([w.reshape(6, 2, 3) for w in matrices], grams(data), parts)
  mixed = [*methods.mix_tensor('regmean', whole, {'alpha': regmean.ALPHA}, np.float32)]
  assert len(mixed) == parts and mixed[0].shape[1:] == (2, 3)
  np.testing.assert_array_equal(np.concatenate(mixed).reshape(6, 6), expected)


def test_what_has_no_gram_matrix_is_mixed_linearly():
  _, matrices = drawn()
  (mixed,) = methods.mix_tensor('regmean', tensor(matrices, ()), {'alpha': 0.9}, np.float32)
  np.testing.assert_array_equal(mixed, linear.mix_leaf(matrices, (0.5, 0.5)))


def test_a_singular_sum_is_refused():
  gram = np.ones((64, 64), np.float32) * 1e4
  gram[0, 0] = 9.9e3  # Not positive.
  matrices = drawn(64)[1]
  with pytest.raises(errors.SphinxError, match='RegMean of kernel: got .* singular'):
    regmean.measure(tensor(matrices, [lambda: gram] * 2), {'alpha': 1.0})


def test_every_layer_of_a_stack_has_its_own_gram_matrix():
  data, matrices = zip(drawn(seed=0), drawn(seed=1))  # Of two layers; of each, of two parents.
  parents = [{'w': jnp.asarray([layer[i] for layer in matrices])} for i in range(2)]
  statistics = [{'w': np.stack([layer[i].T @ layer[i] for layer in data])} for i in range(2)]
  mixed = weights.mix(
    parents, (0.3, 0.7), method='regmean', statistics=statistics, stacked={'w': 1}
  )['w']
  for layer in range(2):
    alone = regmean.mix_matrix(matrices[layer], (0.3, 0.7), grams(data[layer]))
    np.testing.assert_array_equal(mixed[layer], alone)
