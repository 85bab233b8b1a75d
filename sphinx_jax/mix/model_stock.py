"""Model stock (arXiv 2403.19522): how far to go from the base to the mean of the inputs.

Fine-tuned models lie on a sphere around a center that is better than they are. The point between
their mean and the base that is closest to it has the share t of the mean, for k inputs

    t = k * cos / (1 + (k - 1) * cos)

where cos is the mean cosine of the angles between the differences of two inputs to the base, in
each tensor alone. Nothing is chosen by hand: coefficients only say which inputs take part.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import linear, slerp
from sphinx_jax.mix.tensors import Array, Part, Tensor


def measure(tensor: Tensor, options: Mapping) -> Any:
  """Returns the coefficient t / k of the differences; 1 of a single input."""
  count = len(tensor.inputs)
  if count == 1:
    return 1
  pairs = list(itertools.combinations(range(count), 2))
  products = [_products(list(part.leaves), part.base) for part in tensor.parts()]
  sums = [sum(column[1:], start=column[0]) for column in zip(*products)]
  return share(sums[:count], dict(zip(pairs, sums[count:]))) / count


def mix(
  part: Part, coefficients: Sequence[float], measured: Any, options: Mapping, dtype: np.dtype
) -> Array:
  """Adds the share of the mean difference to the base, see mix/methods.py."""
  return linear.mix_leaf(part.leaves, [measured] * len(part.leaves), part.base, dtype)


@jax.jit
def _products(leaves: Sequence[Array], base: Array) -> list[jax.Array]:
  """Returns d_i . d_i of all differences d_i to the base, then d_i . d_j of all pairs i < j."""
  origin = base.astype(jnp.float32)
  differences = [leaf.astype(jnp.float32) - origin for leaf in leaves]
  pairs = itertools.combinations(differences, 2)
  return [*(slerp.dot(d, d) for d in differences), *(slerp.dot(a, b) for a, b in pairs)]


def share(squares: Sequence[jax.Array], products: Mapping[tuple[int, int], jax.Array]) -> jax.Array:
  """Returns t, float32[]. It is 0, the base, if no difference or no finite share exists.

  Args:
    squares: d_i . d_i of the inputs.
    products: (i, j) -> d_i . d_j.
  """
  cosines = []
  for (i, j), product in products.items():
    lengths = jnp.sqrt(squares[i]) * jnp.sqrt(squares[j])
    cosines.append(jnp.clip(product / jnp.where(lengths > 0, lengths, 1), -1, 1))
  count, cosine = len(squares), sum(cosines) / len(cosines)
  size = 1 + (count - 1) * cosine
  is_finite = jnp.abs(size) >= 1e-6
  return jnp.where(is_finite, count * cosine / jnp.where(is_finite, size, 1), 0)
