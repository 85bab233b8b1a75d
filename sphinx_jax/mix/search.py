"""Search of coefficients that lower a held-out loss, one row of them for each group of parameters.

The search is CMA-ES (arXiv 1604.00772, by the package `cma`), as model merging has used it
(arXiv 2403.13187). The coefficients of a group are the softmax of one number per input, of which
the first is 0. So they are positive and sum to 1, and the search begins at equal ones and has
inputs - 1 numbers for each group. They are rounded to thousandths, so that a coefficient may be 0.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sphinx_jax.mix import soup

Rules = tuple[tuple[str, tuple[float, ...]], ...]

_SIGMA = 1.0  # Of two inputs, two thirds of the first mixes have shares from 0.27 to 0.73.
_STEPS = 1000  # Coefficients are multiples of 1 / 1000.


class Found(NamedTuple):
  """What a search has found.

  Attributes:
    coefficients: rules (pattern, one number per input).
    loss: of this mix.
    measured: number of mixes that were asked for.
  """

  coefficients: Rules
  loss: float
  measured: int


def search(
  groups: Sequence[str],
  inputs: int,
  measure: Callable[[Rules], float],
  evaluations: int,
  seed: int = 0,
) -> Found:
  """Searches the coefficients of the lowest loss.

  Each input alone and the uniform mix are measured first, so the result is never worse than these.
  The same seed and the same losses give the same mixes in the same order: a search that was killed
  goes on if `measure` has kept what it measured.

  Args:
    groups: patterns of parameter paths; the first that matches a path decides.
    inputs: their number, at least 2.
    measure: rules -> loss. Infinity and NaN count as worse than any number.
    evaluations: most mixes to measure, with the first ones. At least `inputs + 1` are.
    seed: of the search.
  """
  # Takes a second, and imports matplotlib.
  import cma

  best: tuple[float, Rules] | None = None
  measured = 0

  def try_mix(rows: Sequence[tuple[float, ...]]) -> float:
    nonlocal best, measured
    rules = tuple(zip(groups, rows))
    loss = measure(rules)
    loss = math.inf if math.isnan(loss) else loss
    measured += 1
    if best is None or loss < best[0]:
      best = loss, rules
    return loss

  starts = [[i] for i in range(inputs)] + [list(range(inputs))]
  for members in starts:
    try_mix([soup.average(members, inputs)] * len(groups))

  rng = np.random.default_rng(seed % 2**64)
  options = {
    'randn': lambda *shape: rng.standard_normal(shape),
    'seed': math.nan,  # Or it would seed numpy's global generator.
    'verbose': -9,  # Prints nothing and writes no files.
  }
  strategy = cma.CMAEvolutionStrategy(np.zeros(len(groups) * (inputs - 1)), _SIGMA, options)
  while measured < evaluations and not strategy.stop():
    candidates = strategy.ask()
    losses = []
    for numbers in candidates[: evaluations - measured]:
      losses.append(try_mix(rows_of(numbers, inputs)))
    if len(losses) < len(candidates):
      break
    worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
    strategy.tell(candidates, [loss if math.isfinite(loss) else worst + 1 for loss in losses])
  return Found(best[1], best[0], measured)


def rows_of(numbers: np.ndarray, inputs: int) -> list[tuple[float, ...]]:
  """Returns the coefficients that the numbers of a search stand for.

  Args:
    numbers: float64[groups * (inputs - 1)].
    inputs: number of inputs.

  Returns:
    One row of `inputs` coefficients per group, multiples of 1 / 1000 with sum 1.
  """
  logits = np.asarray(numbers).reshape(-1, inputs - 1)
  logits = np.concatenate([np.zeros((len(logits), 1)), logits], axis=1)
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  shares = np.rint(_STEPS * powers / powers.sum(axis=1, keepdims=True)).astype(int)
  for row in shares:
    row[row.argmax()] += _STEPS - row.sum()
  return [tuple(int(share) / _STEPS for share in row) for row in shares]
