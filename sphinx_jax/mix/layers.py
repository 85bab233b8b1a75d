"""Rules of a weight mix for single layers, whose parameters are stacked on a leading axis.

The pattern of a rule may end in `@LAYER` or `@FIRST-LAST`: 'llm/layers/.*@0-3' is layers 0 to 3 of
the stacks whose path matches 'llm/layers/.*'. No path has an '@'. The same names single layers:
'llm/layers/attention/wq/kernel@2'.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sphinx_jax.core import errors

_LAYERS = re.compile(r'(\d+)(?:-(\d+))?')


def split(pattern: str) -> tuple[str, range | None]:
  """Splits the pattern of a rule into a pattern of paths and the layers; None: all of them.

  Raises:
    SphinxError: what follows the '@' names no layers.
  """
  of_paths, at, text = pattern.rpartition('@')
  if not at:
    return pattern, None
  found = _LAYERS.fullmatch(text)
  span = range(int(found[1]), int(found[2] or found[1]) + 1) if found else ()
  if not span:
    raise errors.make(
      f"mix of '{pattern}'", f"layers '@{text}'", "'@LAYER' or '@FIRST-LAST'", 'for instance @0-3'
    )
  return of_paths, span


def check(patterns: Iterable[str], stacks: Mapping[str, int]) -> None:
  """Checks that every pattern with layers matches a stack, and that the stack has these layers.

  Args:
    patterns: patterns of rules.
    stacks: path -> number of layers, of every stack and of the experts in it.

  Raises:
    SphinxError: one does not.
  """
  for pattern in patterns:
    of_paths, span = split(pattern)
    if span is None:
      continue
    depth = max((n for path, n in stacks.items() if re.fullmatch(of_paths, path)), default=0)
    if span[-1] >= depth:
      raise errors.make(
        f"mix of '{pattern}'",
        f'layer {span[-1]} of {depth}' if depth else 'a pattern that matches no stack of layers',
        f'layers 0 to {depth - 1}' if depth else 'one that does',
        'correct the rule',
      )


def parts(path: str, experts: int, layers: int) -> dict[str, tuple[tuple[str, ...], int | None]]:
  """Returns the parts of a leaf that may have coefficients of their own.

  Args:
    path: path of the leaf.
    experts: number of experts in it, or 0.
    layers: number of layers in it, or 0.

  Returns:
    Name of the part -> (paths that a pattern may match, layer or None). The name of expert 1 in
    layer 2 is 'PATH/1@2'.
  """
  names = {path: (path,)} | {f'{path}/{n}': (path, f'{path}/{n}') for n in range(experts)}
  if not layers:
    return {name: (matched, None) for name, matched in names.items()}
  return {f'{name}@{n}': (matched, n) for name, matched in names.items() for n in range(layers)}


def columns(rows: Sequence[Sequence[float]], shape: Sequence[int], depth: int) -> list[np.ndarray]:
  """Returns the coefficients of the tensors in a stack as one array per parent.

  Args:
    rows: of each tensor, in row-major order: one number per parent.
    shape: of the stack.
    depth: number of leading axes along which tensors are stacked.

  Returns:
    float32[layers,1,...] or float32[layers,experts,1,...] for each parent.
  """
  broadcast = (*shape[:depth], *(1,) * (len(shape) - depth))
  return [np.float32(column).reshape(broadcast) for column in zip(*rows)]
