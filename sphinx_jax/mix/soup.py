"""Greedy soup: the average of those inputs that lower a held-out loss (arXiv 2203.05482).

The inputs are sorted by their loss. Each is added to the average of those before it, and stays if
the loss does not rise.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

Row = tuple[float, ...]


class Soup(NamedTuple):
  """What a greedy soup has chosen.

  Attributes:
    coefficients: one per input, with sum 1.
    loss: of this mix.
    order: numbers of the inputs, in the order in which they were tried.
    kept: those of them that are in the greedy soup.
  """

  coefficients: Row
  loss: float
  order: tuple[int, ...]
  kept: tuple[int, ...]


def greedy(inputs: int, measure: Callable[[Row], float]) -> Soup:
  """Chooses the inputs to average.

  The average of all inputs is measured, too. It is the result where its loss is lower, which the
  paper does not do: the result is never worse than an input or than the uniform mix.

  Args:
    inputs: their number.
    measure: coefficients -> loss. It is asked again for a mix that it has measured.
  """
  losses = [measure(average([i], inputs)) for i in range(inputs)]
  order = sorted(range(inputs), key=losses.__getitem__)
  kept, best = [order[0]], losses[order[0]]
  for candidate in order[1:]:
    loss = measure(average([*kept, candidate], inputs))
    if loss <= best:
      kept, best = [*kept, candidate], loss
  chosen, uniform = average(kept, inputs), average(range(inputs), inputs)
  loss = measure(uniform)
  if loss < best:
    chosen, best = uniform, loss
  return Soup(chosen, best, tuple(order), tuple(kept))


def average(members: Collection[int], inputs: int) -> Row:
  """Returns the coefficients of the average of some inputs.

  Args:
    members: their numbers.
    inputs: number of all inputs.
  """
  return tuple(1 / len(members) if i in members else 0.0 for i in range(inputs))
