"""The mix of weights: several models of one shape become one, leaf by leaf.

The paper trains the LLM on real-world captions and on synthetic captions, the second run starting
from the first, and mixes them as `W = b * W_real + (1 - b) * W_synthetic` (arXiv 2311.07575,
section 3.1). Two other methods are task arithmetic, `base + sum of c_i * (W_i - base)`
(arXiv 2212.04089), and slerp.

`mix` mixes whole trees on any mesh. `checkpoint/mixing.py` streams checkpoints of any size through
`mix_leaf`.
"""

import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import log
from sphinx_jax.mix import layers

METHODS = ('linear', 'slerp')
# Above this cosine slerp falls back to the straight line, as in mergekit.
PARALLEL = 0.9995

# One coefficient per tree, or an ordered list of (pattern of parameter paths, one per tree).
Coefficients = Sequence[float] | Sequence[tuple[str, Sequence[float]]]
Rules = list[tuple[str, tuple[float, ...]]]
Array = jax.Array | np.ndarray


def mix(
  parents: Sequence[Mapping],
  coefficients: Coefficients,
  unnormalized: bool = False,
  *,
  base: Mapping | None = None,
  method: str = 'linear',
  dtype: Any = None,
  stacks: Mapping[str, int] = types.MappingProxyType({}),
) -> dict:
  """Mixes several parameter trees into one.

  Coefficients are Python numbers, so the function works inside `jax.jit` with traced trees on any
  mesh. Every sum is leaf by leaf; only the three dot products of slerp cross devices. A parent
  whose coefficient is 0 is not read, and a single coefficient of 1 returns that parent's leaf bit
  for bit.

  Args:
    parents: trees of arrays with equal paths and shapes.
    coefficients: one number per parent; or ordered rules `(pattern, coefficients)`. The first
      pattern that matches the whole path of a leaf decides, and every leaf must be covered.
    unnormalized: allow coefficients that do not sum to 1.
    base: the tree that the parents started from. The result is then
      `base + sum of c_i * (parent_i - base)`, for any coefficients.
    method: 'linear', or 'slerp' for two parents. Slerp rotates each leaf, taken as one vector (a
      stack of layers as one), from the first parent to the second; the second coefficient is the
      share of the angle.
    dtype: dtype of the result's floating-point leaves; None: the first parent's dtypes.
    stacks: path -> number of layers, of the leaves that rules may take apart by layer.

  Returns:
    A tree like the first parent. The arithmetic is float32.

  Raises:
    SphinxError: the parents differ (the leaves are named), the number of coefficients is wrong,
      their sum is not 1, no pattern matches a leaf, or a pattern matches none.
  """
  if not parents:
    raise errors.make('mix', 'no parents', 'at least one tree', 'name the checkpoints to mix')
  rules = as_rules(
    coefficients, len(parents), unnormalized or base is not None, method, base is not None
  )
  for index, other in enumerate(parents[1:], start=1):
    check_same_leaves(parents[0], other, f'parent {index}', 'the first parent')
  if base is not None:
    check_same_leaves(parents[0], base, 'base', 'the first parent')
  flat_parents = [trees.flatten(parent) for parent in parents]
  flat_base = None if base is None else trees.flatten(base)

  if method == 'slerp':  # It takes a stack as one vector.
    stacks = {}
  matched = match(rules, flat_parents[0], stacks=stacks)

  def mix_path(path: str) -> jax.Array:
    leaves = [parent[path] for parent in flat_parents]
    leaf_coefficients = layers.nested(matched, path, 0, stacks.get(path, 0))
    if isinstance(leaf_coefficients, list):
      leaf_coefficients = layers.columns(leaf_coefficients, leaves[0].ndim)
    if method == 'slerp' and needs_slerp(leaf_coefficients):
      leaf_coefficients = slerp_coefficients(leaf_coefficients, *dot_products(*leaves))
    base_leaf = None if flat_base is None else flat_base[path]
    return jnp.asarray(mix_leaf(leaves, leaf_coefficients, base_leaf, dtype))

  return trees.unflatten({path: mix_path(path) for path in flat_parents[0]})


def mix_leaf(
  leaves: Sequence[Array],
  coefficients: Sequence[Any],
  base: Array | None = None,
  dtype: Any = None,
) -> Array:
  """Mixes one leaf linearly, or a part of it: the operation is elementwise.

  Args:
    leaves: one array per parent, all of one shape.
    coefficients: one per parent, Python numbers, float32[], or float32 arrays that broadcast to the
      leaf. A Python 0 leaves its parent unread, and a single Python 1 returns its parent.
    base: the leaf that the parents started from, or None.
    dtype: dtype of a floating-point result; None: the first leaf's.

  Returns:
    The float32 sum, cast to the dtype. The compiler may fuse a multiplication and an addition on a
    CPU into one operation that rounds once.
  """
  dtype = out_dtype(leaves[0].dtype, dtype)
  used = [
    (leaf, coefficient)
    for leaf, coefficient in zip(leaves, coefficients)
    if not _is_plain(coefficient, 0)
  ]
  if base is not None and not used:
    used = [(base, 1)]
  if len(used) == 1 and _is_plain(used[0][1], 1):
    leaf = used[0][0]
    return leaf if leaf.dtype == dtype else jnp.asarray(leaf).astype(dtype)
  if not used:
    return jnp.zeros(leaves[0].shape, dtype)
  used_leaves = [leaf for leaf, _ in used]
  used_coefficients = [jnp.float32(coefficient) for _, coefficient in used]
  return _weighted_sum(used_leaves, used_coefficients, base, dtype)


def _is_plain(coefficient: Any, value: int) -> bool:
  """Whether a coefficient is a Python number (not a traced or computed one) of this value."""
  return isinstance(coefficient, (int, float)) and coefficient == value


def _sum(
  leaves: Sequence[jax.Array],
  coefficients: Sequence[jax.Array],
  base: jax.Array | None,
  dtype: Any,
) -> jax.Array:
  wide = [leaf.astype(jnp.float32) for leaf in leaves]
  if base is None:
    return sum(c * leaf for leaf, c in zip(wide, coefficients)).astype(dtype)
  start = base.astype(jnp.float32)
  return (start + sum(c * (leaf - start) for leaf, c in zip(wide, coefficients))).astype(dtype)


# Compiled for every caller, so that rounding is the same everywhere; one pass over memory.
_weighted_sum = jax.jit(_sum, static_argnums=3)


def out_dtype(stored: Any, requested: Any = None) -> np.dtype:
  """Returns the dtype of a mixed leaf: the requested one if the leaf is floating-point."""
  is_cast = requested is not None and jnp.issubdtype(stored, jnp.floating)
  return np.dtype(requested if is_cast else stored)


@jax.jit
def dot_products(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the dot products that slerp needs, of two leaves or of equal parts of them.

  Returns:
    (first . first, first . second, second . second), each float32[].
  """

  def product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Sum each row first: one long float32 sum would lose its small terms.
    rows = (a * b).sum(-1) if a.ndim else a * b
    return rows.sum()

  a, b = (leaf.astype(jnp.float32) for leaf in (first, second))
  return product(a, a), product(a, b), product(b, b)


def needs_slerp(coefficients: Sequence[float]) -> bool:
  """Whether slerp with these coefficients is more than one of its parents."""
  return 0 not in coefficients


def slerp_coefficients(
  coefficients: Sequence[float], aa: Any, ab: Any, bb: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns the factors by which slerp multiplies its two parents, as mergekit computes them.

  Args:
    coefficients: of the two parents, with sum 1.
    aa, ab, bb: from `dot_products`.

  Returns:
    Two float32[]: the sines of the shares of the angle, over the sine of the angle. If the parents
    are parallel, the coefficients themselves.
  """
  first, second = (jnp.float32(coefficient) for coefficient in coefficients)
  lengths = [jnp.sqrt(jnp.float32(square)) for square in (aa, bb)]
  cosine = jnp.float32(ab)
  for length in lengths:
    cosine /= jnp.where(length > 1e-8, length, 1)
  is_parallel = jnp.abs(cosine) > PARALLEL
  angle = jnp.arccos(jnp.where(is_parallel, 0, cosine))
  return (
    jnp.where(is_parallel, first, jnp.sin(first * angle) / jnp.sin(angle)),
    jnp.where(is_parallel, second, jnp.sin(second * angle) / jnp.sin(angle)),
  )


def to_slerp(
  coefficients: Mapping[str, Sequence[float]], parts: Iterable[tuple[str, Array, Array]]
) -> dict[str, Sequence[Any]]:
  """Replaces coefficients by the factors of slerp.

  Args:
    coefficients: path -> coefficients of the two parents.
    parts: (path, part of the first parent's leaf, the same of the second) until they cover the
      leaves that need slerp.

  Returns:
    Path -> factors; the coefficients themselves for leaves without parts.
  """
  products: dict[str, np.ndarray] = {}
  for path, first, second in parts:
    sums = [float(product) for product in dot_products(first, second)]
    products[path] = products.get(path, np.zeros(3)) + sums
  return {
    path: slerp_coefficients(row, *products[path]) if path in products else row
    for path, row in coefficients.items()
  }


def as_json(coefficients: Coefficients) -> list:
  """Returns coefficients as JSON gives them back: tuples become lists."""
  return [
    item if isinstance(item, (int, float)) else [item[0], list(item[1])] for item in coefficients
  ]


def as_rules(
  coefficients: Coefficients,
  parents: int,
  unnormalized: bool = False,
  method: str = 'linear',
  has_base: bool = False,
) -> Rules:
  """Returns coefficients as checked, ordered rules; plain numbers become the rule '.*'.

  Args:
    coefficients: as in `mix`.
    parents: the number of parents.
    unnormalized: allow linear coefficients that do not sum to 1.
    method: 'linear' or 'slerp'.
    has_base: whether the mix has a base.

  Raises:
    SphinxError: a pattern is no regular expression, the number of coefficients is wrong, their sum
      is not 1, the method is unknown, or slerp does not have exactly two parents.
  """
  if method not in METHODS:
    raise errors.unknown('method of mixing', method, METHODS)
  if method == 'slerp' and (parents != 2 or has_base):
    raise errors.make(
      'slerp',
      f'{parents} inputs and a base' if has_base else f'{parents} inputs',
      'two inputs and no base',
      'use the linear method',
    )
  if all(isinstance(item, (int, float)) for item in coefficients):
    coefficients = [('.*', coefficients)]
  rules = [(pattern, tuple(float(c) for c in row)) for pattern, row in coefficients]
  for pattern, row in rules:
    _check_coefficients(pattern, row, parents, unnormalized and method == 'linear')
  return rules


def match(
  rules: Rules,
  paths: Iterable[str],
  experts: Mapping[str, int] = types.MappingProxyType({}),
  stacks: Mapping[str, int] = types.MappingProxyType({}),
) -> dict[str, tuple[float, ...]]:
  """Returns path -> coefficients by the first rule whose pattern matches the whole path.

  A rule that is never the first is logged.

  Args:
    rules: from `as_rules`.
    paths: paths of all leaves.
    experts: path -> number of experts, of leaves that have some. A rule also matches 'PATH/N' for
      expert N alone, and the result has these paths, too.
    stacks: path -> number of layers, of stacks of layers. The result has 'PATH@N' for each layer in
      place of the path, and rules may name layers, see mix/layers.py.

  Raises:
    SphinxError: no rule matches a path, or a rule matches none.
  """
  paths = list(paths)
  of_experts = {f'{path}/{n}': path for path, count in experts.items() for n in range(count)}
  depths = {name: stacks[path] for name, path in of_experts.items() if path in stacks}
  layers.check((pattern for pattern, _ in rules), {**stacks, **depths})
  patterns = [layers.split(pattern) for pattern, _ in rules]
  trees.check_rules('mix of', patterns, [*paths, *of_experts])

  def decide(names: Sequence[str], layer: int | None) -> int:
    for number, (pattern, span) in enumerate(patterns):
      is_here = span is None or layer in span
      if is_here and any(re.fullmatch(pattern, name) for name in names):
        return number
    where = names[0] if layer is None else f'{names[0]}@{layer}'
    return trees.first_match(rules, where)  # Raises the error of a parameter without a rule.

  deciding = {
    name: decide(*part)
    for path in paths
    for name, part in layers.parts(path, experts.get(path, 0), stacks.get(path, 0)).items()
  }
  for number in range(len(rules) - 1):  # The last rule may be the default.
    if number not in deciding.values():
      log.warning("rule '%s' decides nothing: earlier rules match first", rules[number][0])
  return {path: rules[number][1] for path, number in deciding.items()}


def _check_coefficients(
  pattern: str, coefficients: Sequence[float], parents: int, unnormalized: bool
) -> None:
  who = f"mix of '{pattern}'"
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise errors.make(
      who, f'no regular expression ({error})', 'a pattern of parameter paths', 'correct it'
    ) from None
  if len(coefficients) != parents:
    raise errors.make(
      who,
      f'{len(coefficients)} coefficients',
      f'{parents}, one per parent',
      'give one number for each input',
    )
  described = f'coefficients {list(coefficients)} of sum {sum(coefficients):g}'
  if not np.all(np.isfinite(coefficients)):
    raise errors.make(who, described, 'finite numbers', 'correct them')
  if not unnormalized and not abs(sum(coefficients) - 1) < 1e-6:
    raise errors.make(who, described, 'a sum of 1', 'correct them, or set unnormalized')


def check_same_leaves(first: Mapping, other: Mapping, name: str, reference: str) -> None:
  """Compares the leaves of two trees by path and shape; dtypes may differ, sums are float32.

  Args:
    first, other: trees of arrays or shape structs.
    name: what `other` is, for the error message.
    reference: what `first` is, for the error message.

  Raises:
    SphinxError: names every leaf that is missing, extra or of another shape.
  """
  dtypes = {path: leaf.dtype for path, leaf in trees.flatten(first).items()}
  structs = {
    path: jax.ShapeDtypeStruct(leaf.shape, dtypes.get(path, leaf.dtype))
    for path, leaf in trees.flatten(other).items()
  }
  lines = trees.differences(first, trees.unflatten(structs))
  if lines:
    raise errors.make(
      f'mix, {name}',
      f'{len(lines)} differences: ' + '; '.join(lines),
      f'the leaves of {reference}',
      'mix checkpoints of one model config',
    )
