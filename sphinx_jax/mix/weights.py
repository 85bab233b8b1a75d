"""The mix of weights: several models of one shape become one, leaf by leaf.

The paper trains the LLM on real-world captions and on synthetic captions, the second run starting from the first, and
mixes them as `W = b * W_real + (1 - b) * W_synthetic` (arXiv 2311.07575, section 3.1). Beside that sum stand task
arithmetic, `base + sum of c_i * (W_i - base)` (arXiv 2212.04089), and slerp. `mix_weights` streams checkpoints of any size
through `mix_leaf`, and `mix` does whole trees with it, on any mesh.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors, trees

METHODS = ('linear', 'slerp')
PARALLEL = 0.9995  # Cosine from which slerp is the straight line; mergekit's.

# One coefficient per tree, or an ordered list of (pattern of parameter paths, one coefficient per tree).
Coefficients = Sequence[float] | Sequence[tuple[str, Sequence[float]]]
Rules = list[tuple[str, tuple[float, ...]]]


def mix(
  parents: Sequence[Mapping],
  coefficients: Coefficients,
  unnormalized: bool = False,
  *,
  base: Mapping | None = None,
  method: str = 'linear',
  dtype: Any = None,
) -> dict:
  """One parameter tree of several.

  Coefficients are plain numbers, so the function can stand inside `jax.jit` (the trees traced, on any mesh): every sum is
  leaf by leaf, and only slerp's three inner products of a leaf cross devices. A parent whose coefficient is 0 is not read,
  and a lone coefficient of 1 returns that parent's leaf bit for bit.

  Args:
    parents: trees of arrays with equal paths and shapes.
    coefficients: one number per parent; or ordered rules `(pattern, numbers)`, where the first pattern that matches the
      whole path of a leaf decides and every leaf must be covered.
    unnormalized: allows coefficients that do not sum to 1.
    base: what the parents started from; the result is `base + sum of c_i * (parent_i - base)`, for any coefficients.
    method: 'linear', or 'slerp': two parents, each leaf turned from the first to the second as one long vector (a stack of
      layers as one), the second coefficient being the share of the angle.
    dtype: of the result's floating leaves; None: the first parent's dtypes.

  Returns:
    A tree like the first parent; the arithmetic is float32.

  Raises:
    SphinxError: parents that differ (naming the leaves), a wrong number of coefficients, a sum that is not 1, a leaf that
      no pattern matches.
  """
  if not parents:
    raise errors.make('mix', 'no parents', 'at least one tree', 'name the checkpoints to mix')
  rules = as_rules(
    coefficients, len(parents), unnormalized or base is not None, method, base is not None
  )
  for index, other in enumerate(parents[1:], start=1):
    check_alike(parents[0], other, f'parent {index}', 'the first parent')
  if base is not None:
    check_alike(parents[0], base, 'base', 'the first parent')
  flat, start = (
    [trees.flatten(parent) for parent in parents],
    None if base is None else trees.flatten(base),
  )

  def leaf(path: str) -> jax.Array:
    leaves, numbers = [tree[path] for tree in flat], trees.first_match(rules, path)
    if method == 'slerp' and is_turned(numbers):
      numbers = turned(numbers, *products(*leaves))
    mixed = mix_leaf(leaves, numbers, None if start is None else start[path], dtype)
    return jnp.asarray(mixed)

  return trees.unflatten({path: leaf(path) for path in flat[0]})


def mix_leaf(
  leaves: Sequence[Any], numbers: Sequence[Any], base: Any = None, dtype: Any = None
) -> Any:
  """One leaf of a linear mix, or a part of it, as all of it is elementwise.

  Args:
    leaves: one array per parent, of one shape.
    numbers: one coefficient per parent. A plain 0 leaves its parent unread, and a lone plain 1 gives its parent back.
    base: where the parents started, or None.
    dtype: of a floating result; None: the first leaf's.

  Returns:
    The sum in float32, cast. Compiled on a CPU, a multiplication and an addition may become one operation that rounds once.
  """
  dtype = out_dtype(leaves[0].dtype, dtype)
  used = [(leaf, number) for leaf, number in zip(leaves, numbers) if not _is(number, 0)]
  if base is not None and not used:
    used = [(base, 1)]
  if len(used) == 1 and _is(used[0][1], 1):
    return used[0][0] if used[0][0].dtype == dtype else jnp.asarray(used[0][0]).astype(dtype)
  if not used:
    return jnp.zeros(leaves[0].shape, dtype)
  return _add([leaf for leaf, _ in used], [jnp.float32(number) for _, number in used], base, dtype)


def _is(number: Any, value: int) -> bool:
  return isinstance(number, (int, float)) and number == value


def _sum(
  leaves: Sequence[jax.Array], numbers: Sequence[jax.Array], base: jax.Array | None, dtype: Any
) -> jax.Array:
  wide = [leaf.astype(jnp.float32) for leaf in leaves]
  if base is None:
    return sum(number * leaf for leaf, number in zip(wide, numbers)).astype(dtype)
  start = base.astype(jnp.float32)
  return (start + sum(number * (leaf - start) for leaf, number in zip(wide, numbers))).astype(dtype)


_add = jax.jit(
  _sum, static_argnums=3
)  # Compiled wherever it is called from: one rounding everywhere, one pass over memory.


def out_dtype(of: Any, wanted: Any = None) -> np.dtype:
  """The dtype of a leaf's mix: the wanted one where the leaf is floating, else its own."""
  return np.dtype(wanted if wanted is not None and jnp.issubdtype(of, jnp.floating) else of)


@jax.jit
def products(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(first . first, first . second, second . second) of two leaves, or of equal parts of them, in float32."""

  def product(a, b):
    rows = (
      (a * b).sum(-1) if a.ndim else a * b
    )  # Row by row first: a long float32 sum would lose its small terms.
    return rows.sum()

  a, b = (leaf.astype(jnp.float32) for leaf in (first, second))
  return product(a, a), product(a, b), product(b, b)


def is_turned(numbers: Sequence[float]) -> bool:
  """Whether slerp with these coefficients is more than one of its parents."""
  return 0 not in numbers


def turned(numbers: Sequence[float], aa: Any, ab: Any, bb: Any) -> tuple[jax.Array, jax.Array]:
  """What slerp multiplies its two parents with: sines of shares of the angle between them, as mergekit has it.

  Args:
    numbers: coefficients of the two parents, of sum 1.
    aa, ab, bb: from `products`.

  Returns:
    Two factors float32[]; the plain coefficients where the parents are parallel.
  """
  first, second = (jnp.float32(number) for number in numbers)
  lengths = [jnp.sqrt(jnp.float32(square)) for square in (aa, bb)]
  cosine = jnp.float32(ab)
  for length in lengths:
    cosine /= jnp.where(length > 1e-8, length, 1)
  straight = jnp.abs(cosine) > PARALLEL
  angle = jnp.arccos(jnp.where(straight, 0, cosine))
  return (
    jnp.where(straight, first, jnp.sin(first * angle) / jnp.sin(angle)),
    jnp.where(straight, second, jnp.sin(second * angle) / jnp.sin(angle)),
  )


def as_rules(
  coefficients: Coefficients,
  parents: int,
  unnormalized: bool = False,
  method: str = 'linear',
  based: bool = False,
) -> Rules:
  """Ordered rules of checked coefficients; one sequence of numbers is the rule that matches everything.

  Raises:
    SphinxError: a wrong number of coefficients, a sum that is not 1, an unknown method, slerp of anything but two.
  """
  if method not in METHODS:
    raise errors.unknown('method of mixing', method, METHODS)
  if method == 'slerp' and (parents != 2 or based):
    raise errors.make(
      'slerp',
      f'{parents} inputs' + (' and a base' if based else ''),
      'two inputs and no base',
      'take the linear method',
    )
  if all(isinstance(item, (int, float)) for item in coefficients):
    coefficients = [('.*', coefficients)]
  rules = [
    (pattern, tuple(float(number) for number in numbers)) for pattern, numbers in coefficients
  ]
  for pattern, numbers in rules:
    _check(pattern, numbers, parents, unnormalized and method == 'linear')
  return rules


def _check(pattern: str, numbers: Sequence[float], parents: int, unnormalized: bool) -> None:
  who = f"mix of '{pattern}'"
  if len(numbers) != parents:
    raise errors.make(
      who,
      f'{len(numbers)} coefficients',
      f'{parents}, one per parent',
      'give one number for each input',
    )
  if not np.all(np.isfinite(numbers)):
    raise errors.make(
      who, f'coefficients {list(numbers)} of sum {sum(numbers):g}', 'finite numbers', 'correct them'
    )
  if not unnormalized and not abs(sum(numbers) - 1) < 1e-6:
    raise errors.make(
      who,
      f'coefficients {list(numbers)} of sum {sum(numbers):g}',
      'a sum of 1',
      'correct them, or set unnormalized',
    )


def check_alike(first: Mapping, other: Mapping, name: str, than: str) -> None:
  """Refuses trees of other leaves; dtypes may differ, as parents are added in float32.

  Raises:
    SphinxError: names every leaf that is missing, extra or of another shape.
  """
  dtypes = trees.flatten(first)
  got = trees.unflatten(
    {
      path: jax.ShapeDtypeStruct(leaf.shape, dtypes[path].dtype if path in dtypes else leaf.dtype)
      for path, leaf in trees.flatten(other).items()
    }
  )
  lines = trees.difference(first, got)
  if lines:
    raise errors.make(
      f'mix, {name}',
      f'{len(lines)} differences: ' + '; '.join(lines),
      f'the leaves of {than}',
      'mix checkpoints of one model config',
    )
