"""What a method of mixing works on: one tensor of all inputs, as a whole or part by part.

A tensor is one layer of a parameter, or one expert of that layer: layers and experts are stacked
along the leading axes of our parameters, and every method takes each alone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Part:
  """The same numbers of all inputs, of any shape: a whole tensor, or a piece of it.

  Attributes:
    leaves: one array per parent that is used.
    base: the same of the model that the parents started from, or None.
    start: position of the first number in the tensor, in row-major order.
    fishers: the same of the parents' Fisher statistics, for a method that needs them.
  """

  leaves: Sequence[Array]
  base: Array | None = None
  start: int = 0
  fishers: Sequence[Array] = ()

  @property
  def size(self) -> int:
    """How many numbers of each input it has."""
    return int(np.prod(self.leaves[0].shape))


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of all inputs.

  Attributes:
    name: path of the parameter, with the numbers of the layer and of the expert: 'a/b/kernel/3'.
    size: how many numbers it has.
    inputs: the positions of the parents that are used, among all inputs of the mix.
    coefficients: of the parents that are used; none is 0.
    parts: yields the parts that cover it, in order. It can be called again, which reads them again.
    grams: for a method that needs them, functions that read the Gram matrix [in,in] of the tensor's
      inputs, one per parent that is used; () of a tensor that is no kernel.
  """

  name: str
  size: int
  inputs: Sequence[int]
  coefficients: Sequence[Any]
  parts: Callable[[], Iterable[Part]]
  grams: Sequence[Callable[[], np.ndarray]] = ()
