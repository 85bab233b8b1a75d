"""Parameter trees as flat dictionaries: paths, ordered patterns, leaf-by-leaf comparison."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import errors


def flatten(tree: Mapping, prefix: str = '') -> dict[str, Any]:
  """Converts nested dictionaries to {'a/b/c': leaf}, in the order of the tree."""
  flat = {}
  for name, value in tree.items():
    path = f'{prefix}{name}'
    if isinstance(value, Mapping):
      flat.update(flatten(value, path + '/'))
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
  """Inverts `flatten`."""
  tree: dict = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def first_match(rules: Sequence[tuple[str, Any]], path: str) -> Any:
  """Returns the value of the first rule whose pattern matches the whole path.

  Args:
    rules: (regular expression, value) pairs.
    path: path of a leaf, as in `flatten`.

  Raises:
    SphinxError: no rule matches.
  """
  for pattern, value in rules:
    if re.fullmatch(pattern, path):
      return value
  raise errors.make(
    f"parameter '{path}'",
    'no matching pattern',
    f'one of {[p for p, _ in rules]} to match',
    "add a pattern, or end the list with '.*'",
  )


def check_rules(who: str, rules: Sequence[tuple[str, Any]], paths: Sequence[str]) -> None:
  """Checks that every rule matches one of some paths, see `first_match`.

  Raises:
    SphinxError: a rule matches none. The message begins with `who`.
  """
  for pattern, _ in rules:
    if not any(re.fullmatch(pattern, path) for path in paths):
      raise errors.make(
        f"{who} '{pattern}'",
        'a rule that matches no parameter',
        f'a pattern of whole paths such as {", ".join(paths[:3])}',
        'correct the pattern',
      )


def differences(expected: Mapping, got: Mapping) -> list[str]:
  """Compares two trees of arrays or shape structs.

  Returns:
    One line for each missing leaf, extra leaf, other shape and other dtype. It is empty if the
    trees are alike.
  """
  want, have = flatten(expected), flatten(got)
  lines = [f'missing {path}' for path in want if path not in have]
  lines += [f'extra {path}' for path in have if path not in want]
  for path in want:
    if path not in have:
      continue
    if tuple(want[path].shape) != tuple(have[path].shape):
      lines.append(f'{path}: shape {tuple(have[path].shape)}, expected {tuple(want[path].shape)}')
    elif np.dtype(want[path].dtype) != np.dtype(have[path].dtype):
      lines.append(f'{path}: dtype {have[path].dtype}, expected {want[path].dtype}')
  return lines


def count(tree: Mapping) -> int:
  """Returns the number of parameters."""
  return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


def nbytes(tree: Mapping) -> int:
  """Returns the bytes of all leaves in their dtypes."""
  leaves = flatten(tree).values()
  return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
