"""The mix of weights: several models of one shape become one, tensor by tensor.

The paper trains the LLM on real-world captions and on synthetic captions, the second run starting
from the first, and mixes them as `W = b * W_real + (1 - b) * W_synthetic` (arXiv 2311.07575,
section 3.1). mix/methods.py has this and the other methods.

`mix` mixes whole trees. `checkpoint/mixing.py` streams checkpoints of any size through the same
functions.
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
from sphinx_jax.mix import layers, linear, methods
from sphinx_jax.mix.tensors import Array

# One coefficient per tree, or an ordered list of (pattern of parameter paths, one per tree).
Coefficients = Sequence[float] | Sequence[tuple[str, Sequence[float]]]
Rules = list[tuple[str, tuple[float, ...]]]
_EMPTY: Mapping[str, Any] = types.MappingProxyType({})


def mix(
  parents: Sequence[Mapping],
  coefficients: Coefficients,
  unnormalized: bool = False,
  *,
  base: Mapping | None = None,
  method: str = 'linear',
  options: Mapping[str, float] = _EMPTY,
  statistics: Sequence[Mapping] = (),
  stacked: Mapping[str, int] = _EMPTY,
  dtype: Any = None,
) -> dict:
  """Mixes several parameter trees into one.

  Coefficients are Python numbers, so linear mixes, slerp and model stock work inside `jax.jit` with
  traced trees on any mesh. Every sum is leaf by leaf; only the dot products of a method cross
  devices. Methods that compare magnitudes or draw at random read the leaves to the host. A parent
  whose coefficient is 0 is not read, and a single coefficient of 1 returns that parent's leaf bit
  for bit if the method is linear or slerp.

  Args:
    parents: trees of arrays with equal paths and shapes.
    coefficients: one number per parent; or ordered rules `(pattern, coefficients)`. The first
      pattern that matches the whole path of a leaf decides, and every leaf must be covered. A path
      with the number of an expert, 'PATH/N', is that expert alone; 'PATTERN@FIRST-LAST' is some
      layers (mix/layers.py).
    unnormalized: allow coefficients that do not sum to 1.
    base: the tree that the parents started from. The coefficients may then have any sum. A linear
      mix becomes `base + sum of c_i * (parent_i - base)`.
    method: a name in `methods.METHODS`.
    options: of the method, see `methods.settle`.
    statistics: one tree per parent, for a method that needs them: 'fisher' has the paths and
      shapes of the parents, 'gram' has float32[...,in,in] at paths of kernels, stacked like them.
    stacked: path -> number of leading axes along which tensors are stacked: 1 of layers, 2 of
      layers and experts (`models.families.stacked`). Other leaves are one tensor.
    dtype: dtype of the result's floating-point leaves; None: the first parent's dtypes.

  Returns:
    A tree like the first parent. The arithmetic is float32.

  Raises:
    SphinxError: the parents differ (the leaves are named), the number of coefficients is wrong,
      their sum is not 1, no pattern matches a leaf, a pattern matches none, or the method lacks
      what it needs.
  """
  if not parents:
    raise errors.make('mix', 'no parents', 'at least one tree', 'name the checkpoints to mix')
  methods.check(method, len(parents), base is not None, len(statistics))
  options = methods.settle(method, options)
  rules = as_rules(coefficients, len(parents), unnormalized, method, base is not None)
  for index, other in enumerate(parents[1:], start=1):
    check_same_leaves(parents[0], other, f'parent {index}', 'the first parent')
  if base is not None:
    check_same_leaves(parents[0], base, 'base', 'the first parent')
  flat_parents = [trees.flatten(parent) for parent in parents]
  flat_base = {} if base is None else trees.flatten(base)
  flat_statistics = [trees.flatten(tree) for tree in statistics]
  experts, stacks = (count(flat_parents[0], stacked) for count in (count_experts, count_layers))
  matched = match(rules, flat_parents[0], experts, stacks)

  def mix_tensor(path: str, at: tuple[int, ...], row: tuple[float, ...]) -> Array:
    leaves = [_take(parent[path], at) for parent in flat_parents]
    base_leaf = _take(flat_base[path], at) if flat_base else None
    measured = [_take(tree[path], at) for tree in flat_statistics if path in tree]
    tensor = methods.whole_tensor(method, tensor_name(path, at), row, leaves, base_leaf, measured)
    (mixed,) = methods.mix_tensor(method, tensor, options, linear.out_dtype(leaves[0].dtype, dtype))
    return mixed

  def mix_path(path: str) -> jax.Array:
    first = flat_parents[0][path]
    depth = stacked.get(path, 0)
    rows = {at: row_of(matched, path, at) for at in np.ndindex(first.shape[:depth])}
    is_alike = len({*rows.values()}) == 1
    if is_alike and methods.METHODS[method].measure is None:
      return jnp.asarray(mix_tensor(path, (), next(iter(rows.values()))))
    if method == 'linear':  # As one stack, which keeps its sharding.
      leaves = [parent[path] for parent in flat_parents]
      columns = layers.columns(list(rows.values()), first.shape, depth)
      return jnp.asarray(linear.mix_leaf(leaves, columns, flat_base.get(path), dtype))
    return jnp.stack([mix_tensor(path, at, row) for at, row in rows.items()]).reshape(first.shape)

  return trees.unflatten({path: mix_path(path) for path in flat_parents[0]})


def _take(leaf: Array, at: tuple[int, ...]) -> Array:
  return leaf[at] if at else leaf


def tensor_name(path: str, at: Sequence[int]) -> str:
  """Returns the name of a tensor of a stack: the path, then the numbers of layer and expert."""
  return '/'.join([path, *map(str, at)])


def count_experts(shapes: Mapping[str, Any], stacked: Mapping[str, int]) -> dict[str, int]:
  """Path -> number of experts, of stacks [layers,experts,...]; arguments as of `mix`."""
  return {path: leaf.shape[1] for path, leaf in shapes.items() if stacked.get(path) == 2}


def count_layers(shapes: Mapping[str, Any], stacked: Mapping[str, int]) -> dict[str, int]:
  """Path -> number of layers, of stacks of layers; arguments as of `mix`."""
  return {path: leaf.shape[0] for path, leaf in shapes.items() if stacked.get(path)}


def row_of(
  matched: Mapping[str, tuple[float, ...]], path: str, at: Sequence[int]
) -> tuple[float, ...]:
  """Returns the coefficients of a tensor: of its layer and its expert, if it is in a stack.

  Args:
    matched: from `match`, with the layers of all stacks.
    path: of the stack.
    at: numbers of the layer and of the expert.
  """
  name = f'{path}/{at[1]}' if len(at) == 2 else path
  return matched[f'{name}@{at[0]}' if at else name]


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
    unnormalized: allow coefficients that do not sum to 1.
    method: a name in `methods.METHODS`.
    has_base: whether the mix has a base.

  Raises:
    SphinxError: a pattern is no regular expression, the number of coefficients is wrong, or they
      are none that the method takes.
  """
  kind = methods.find(method).coefficients
  if unnormalized and kind != 'weights':
    raise errors.make(
      '--unnormalized', f'--method={method}', 'a method that takes any sum', 'leave it out'
    )
  if all(isinstance(item, (int, float)) for item in coefficients):
    coefficients = [('.*', coefficients)]
  rules = [(pattern, tuple(float(c) for c in row)) for pattern, row in coefficients]
  for pattern, row in rules:
    _check_coefficients(pattern, row, parents, kind, unnormalized or has_base)
  return rules


def match(
  rules: Rules,
  paths: Iterable[str],
  experts: Mapping[str, int] = _EMPTY,
  stacks: Mapping[str, int] = _EMPTY,
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
  pattern: str, coefficients: Sequence[float], parents: int, kind: str, any_sum: bool
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
  if kind == 'equal':
    if len({*coefficients} - {0}) != 1:
      raise errors.make(
        who,
        described,
        'the same number for every input that is used, and 0 for the others',
        'correct them, or leave them out',
      )
  elif not any_sum and not abs(sum(coefficients) - 1) < 1e-6:
    advice = 'correct them, or set unnormalized' if kind == 'weights' else 'correct them'
    raise errors.make(who, described, 'a sum of 1', advice)
  if kind == 'portions' and min(coefficients) < 0:
    raise errors.make(who, described, 'none below 0', 'correct them')


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
