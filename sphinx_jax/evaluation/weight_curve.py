"""Measures weight mixes of models that are in memory. The mixes exist only in memory."""

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sphinx_jax.core.progress import Progress
from sphinx_jax.mix import weights

T = TypeVar('T')


def measure(
  parents: Sequence[Mapping],
  coefficients: Sequence[float],
  evaluate: Callable[[dict, float], Mapping[str, float]],
  method: str = 'linear',
  stacked: Mapping[str, int] = types.MappingProxyType({}),
) -> list[dict[str, float]]:
  """Evaluates mixes along the line between two trees. A mix has the sharding of the parents.

  Args:
    parents: two parameter trees on their devices.
    coefficients: shares b of the first tree. The mix is b * first + (1 - b) * second, or the slerp
      between them.
    evaluate: (parameters, share) -> {name: value}, for example validation losses.
    method: how to mix, 'linear' or 'slerp'.
    stacked: path -> number of leading axes along which tensors are stacked, see `weights.mix`.

  Returns:
    One dictionary per coefficient: 'coefficient' and the values of `evaluate`.
  """

  def value(share: float) -> Mapping[str, float]:
    mixed = weights.mix(parents, (share, 1 - share), method=method, stacked=stacked)
    return evaluate(mixed, share)

  measured = measure_each(coefficients, value)
  return [{'coefficient': float(share), **values} for share, values in zip(coefficients, measured)]


def measure_each(
  mixes: Sequence[T], evaluate: Callable[[T], Mapping[str, float]]
) -> list[dict[str, float]]:
  """Evaluates several mixes, one after the other, with progress.

  Args:
    mixes: what identifies each.
    evaluate: makes and measures one: {name: value}.

  Returns:
    The values of each mix.
  """
  measured = []
  with Progress(total=len(mixes), what='weight mixes', unit='mix') as progress:
    for mix in mixes:
      values = dict(evaluate(mix))
      measured.append(values)
      progress.update(note=' '.join(f'{name} {value:.4f}' for name, value in values.items()))
  return measured


def triangle(points: int) -> list[tuple[float, float, float]]:
  """Returns coefficients of three inputs on a grid, from the third input to the first.

  Args:
    points: number of mixes on a side of the triangle.

  Returns:
    points * (points + 1) / 2 rows with sum 1; the inputs alone are among them.
  """
  steps = points - 1
  return [
    (i / steps, j / steps, (steps - i - j) / steps)
    for i, j in itertools.product(range(points), repeat=2)
    if i + j <= steps
  ]


def moved(groups: Sequence[str], inputs: int) -> list[tuple[str, int, weights.Coefficients]]:
  """Returns mixes for a study of sensitivity: the uniform mix with one group from one input.

  Args:
    groups: patterns of parameter paths; the first that matches a path decides. What none matches
      stays uniform.
    inputs: number of inputs.

  Returns:
    (group, number of the input, coefficients) for all groups and inputs.
  """
  uniform = (1 / inputs,) * inputs
  mixes = []
  for group, number in itertools.product(groups, range(inputs)):
    whole = tuple(float(i == number) for i in range(inputs))
    rules = [(pattern, whole if pattern == group else uniform) for pattern in groups]
    mixes.append((group, number, [*rules, ('.*', uniform)]))
  return mixes
