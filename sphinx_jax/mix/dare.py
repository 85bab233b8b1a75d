"""DARE (arXiv 2311.03099): drop differences to the base at random, and rescale the others.

Each number of an input's difference to the base is kept with the probability `density` (1 - p of
the paper) and divided by it, so that the expected difference stays as it is. What is left is summed
as in task arithmetic (`dare_linear`), or takes the place of trimmed differences in TIES
(`dare_ties`), as the paper combines them. mergekit divides by the share that the L1 norm lost
instead, and does not normalize TIES then.

Which numbers are kept is a function of the seed, the name of the tensor, the position of the input
and the position of the number.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import ties
from sphinx_jax.mix.tensors import Array, Part, Tensor

_NUMBERS = 8  # Random 32-bit numbers that Philox draws for each value of its counter.
_PIECE = 1 << 20


def measure(tensor: Tensor, options: Mapping) -> list[int]:
  """Returns the keys of the random numbers, one per input; nothing is read."""
  texts = [f'{options["seed"]} {tensor.name} {number}' for number in tensor.inputs]
  return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'little') for text in texts]


def kept(key: int, start: int, size: int, density: float) -> np.ndarray:
  """Returns which of the numbers from `start` on are kept, bool[size]."""
  if density == 1:
    return np.ones(size, bool)
  mask = np.empty(size, bool)
  for at in range(0, size, _PIECE):
    count = min(_PIECE, size - at)
    block, skip = divmod(start + at, _NUMBERS)
    blocks = -(-(skip + count) // _NUMBERS)
    raw = np.random.Philox(key=key, counter=block).random_raw(blocks * _NUMBERS // 2)
    np.less(
      raw.view(np.uint32)[skip : skip + count], int(density * 2**32), out=mask[at : at + count]
    )
  return mask


def mix_linear(
  part: Part, coefficients: Sequence[float], measured: list[int], options: Mapping, dtype: np.dtype
) -> jax.Array:
  """Drops, rescales and sums a part, see mix/methods.py."""
  return _mix(part, coefficients, measured, options, dtype, False)


def mix_ties(
  part: Part, coefficients: Sequence[float], measured: list[int], options: Mapping, dtype: np.dtype
) -> jax.Array:
  """Drops, rescales, elects and merges a part, see mix/methods.py."""
  return _mix(part, coefficients, measured, options, dtype, True)


def _mix(
  part: Part,
  coefficients: Sequence[float],
  keys: Sequence[int],
  options: Mapping,
  dtype: np.dtype,
  elects: bool,
) -> jax.Array:
  shape, density = part.base.shape, options['density']
  masks = [kept(key, part.start, part.size, density).reshape(shape) for key in keys]
  return mix_kept(
    list(part.leaves),
    part.base,
    masks,
    jnp.asarray(coefficients, jnp.float32),
    density,
    options.get('lambda', 1.0),
    elects,
    dtype,
  )


@functools.partial(jax.jit, static_argnames=('elects', 'dtype'))
def mix_kept(
  leaves: Sequence[Array],
  base: Array,
  masks: Sequence[Array],
  coefficients: jax.Array,
  density: jax.Array,
  factor: jax.Array,
  elects: bool,
  dtype: np.dtype,
) -> jax.Array:
  """Mixes the numbers that are kept.

  Args:
    leaves: of the parents.
    base: of one shape with them.
    masks: bool, whether a number is kept, one array per parent.
    coefficients: float32[inputs].
    density: the share that is kept.
    factor: of the merged differences.
    elects: merge what has the elected sign, as TIES does; otherwise sum all.
    dtype: of the result.
  """
  origin = base.astype(jnp.float32)
  rescaled = [
    jnp.where(mask, (leaf.astype(jnp.float32) - origin) / density, 0)
    for leaf, mask in zip(leaves, masks)
  ]
  if elects:
    merged = ties.elected_mean(rescaled, coefficients)
  else:
    merged = sum(c * difference for c, difference in zip(coefficients, rescaled))
  return (origin + factor * merged).astype(dtype)
