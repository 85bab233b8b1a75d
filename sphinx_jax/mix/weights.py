"""The mix of weights: several models of one shape are interpolated, leaf by leaf, into one.

The paper trains the LLM on real-world captions and on synthetic captions, the second run starting from the first, and
mixes them as `W = b * W_real + (1 - b) * W_synthetic` (arXiv 2311.07575, section 3.1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors, trees

# One coefficient per tree, or an ordered list of (pattern of parameter paths, one coefficient per tree).
Coefficients = Sequence[float] | Sequence[tuple[str, Sequence[float]]]


def mix(parents: Sequence[Mapping], coefficients: Coefficients, unnormalized: bool = False) -> dict:
  """The sum of parameter trees, each times its coefficient.

  Coefficients are plain numbers, so the function can stand inside `jax.jit` (the trees traced, on any mesh). A parent
  whose coefficient is 0 is not read, and a lone coefficient of 1 returns that parent's leaf bit for bit.

  Args:
    parents: trees of arrays with equal paths and shapes.
    coefficients: one number per parent; or ordered rules `(pattern, numbers)`, where the first pattern that matches the
      whole path of a leaf decides and every leaf must be covered.
    unnormalized: allows coefficients that do not sum to 1 (task arithmetic).

  Returns:
    A tree like the first parent, in its dtypes; the sum is computed in float32.

  Raises:
    SphinxError: parents that differ (naming the leaves), a wrong number of coefficients, a sum that is not 1, a leaf that
      no pattern matches.
  """
  if not parents:
    raise errors.make('mix', 'no parents', 'at least one tree', 'name the checkpoints to mix')
  rules = _as_rules(coefficients)
  for pattern, numbers in rules:
    _check(pattern, numbers, len(parents), unnormalized)
  flat = [trees.flatten(parent) for parent in parents]
  for index, other in enumerate(parents[1:], start=1):
    _check_alike(parents[0], other, index)
  return trees.unflatten({
      path: _mix_leaf([tree[path] for tree in flat], trees.first_match(rules, path)) for path in flat[0]})


def _mix_leaf(leaves: Sequence[Any], coefficients: Sequence[float]) -> jax.Array:
  used = [(leaf, number) for leaf, number in zip(leaves, coefficients) if number != 0]
  dtype = leaves[0].dtype
  if len(used) == 1 and used[0][1] == 1:
    return jnp.asarray(used[0][0], dtype)
  total = jnp.zeros(leaves[0].shape, jnp.float32)
  for leaf, number in used:
    total = total + jnp.float32(number) * jnp.asarray(leaf, jnp.float32)
  return total.astype(dtype)


def _as_rules(coefficients: Coefficients) -> list[tuple[str, tuple[float, ...]]]:
  """One sequence of numbers is the rule that matches everything."""
  if all(isinstance(item, (int, float)) for item in coefficients):
    return [('.*', tuple(coefficients))]
  return [(pattern, tuple(numbers)) for pattern, numbers in coefficients]


def _check(pattern: str, numbers: Sequence[float], parents: int, unnormalized: bool) -> None:
  who = f"mix of '{pattern}'"
  if len(numbers) != parents:
    raise errors.make(who, f'{len(numbers)} coefficients', f'{parents}, one per parent', 'give one number for each input')
  if not unnormalized and not abs(sum(numbers) - 1) < 1e-6:
    raise errors.make(who, f'coefficients {list(numbers)} of sum {sum(numbers):g}', 'a sum of 1',
                      'correct them, or set unnormalized')


def _check_alike(first: Mapping, other: Mapping, index: int) -> None:
  """Dtypes may differ: parents are added in float32."""
  dtypes = trees.flatten(first)
  got = trees.unflatten({
      path: jax.ShapeDtypeStruct(leaf.shape, dtypes[path].dtype if path in dtypes else leaf.dtype)
      for path, leaf in trees.flatten(other).items()})
  lines = trees.difference(first, got)
  if lines:
    raise errors.make(f'mix, parent {index}', '; '.join(lines), 'the leaves of the first parent',
                      'mix checkpoints of one model config')
