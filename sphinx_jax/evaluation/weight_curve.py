"""Measures weight mixes along the line between two models. The mixes exist only in memory."""

import types
from collections.abc import Callable, Mapping, Sequence

from sphinx_jax.core.progress import Progress
from sphinx_jax.mix import weights


def measure(
  parents: Sequence[Mapping],
  coefficients: Sequence[float],
  evaluate: Callable[[dict, float], Mapping[str, float]],
  method: str = 'linear',
  stacked: Mapping[str, int] = types.MappingProxyType({}),
) -> list[dict[str, float]]:
  """Evaluates mixes of two parameter trees. A mix has the sharding of the parents.

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
  points = []
  with Progress(total=len(coefficients), what='weight mixes', unit='mix') as progress:
    for share in coefficients:
      mixed = weights.mix(parents, (share, 1 - share), method=method, stacked=stacked)
      values = evaluate(mixed, share)
      points.append({'coefficient': float(share), **values})
      progress.update(note=' '.join(f'{name} {value:.4f}' for name, value in values.items()))
  return points
