"""The methods of mixing weights, and what each of them needs.

A method is one or two pure functions in a file of its own. `measure` takes a whole tensor
(mix/tensors.py), part by part, and returns what `mix` must know about it; `mix` is elementwise and
takes any part. So a tensor of any size is mixed in the memory of its parts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.mix import (
  breadcrumbs,
  dare,
  fisher,
  linear,
  model_stock,
  regmean,
  slerp,
  ties,
)
from sphinx_jax.mix.tensors import Array, Part, Tensor

Options = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Option:
  """A number that a method takes beside the coefficients.

  Attributes:
    kind: float or int.
    is_valid: whether it may have a value.
    expected: the valid values, for messages.
    help: its meaning.
  """

  kind: type
  is_valid: Callable[[float], bool]
  expected: str
  help: str


OPTIONS: dict[str, Option] = {
  'alpha': Option(
    float,
    lambda value: 0 <= value <= 1,
    'a number from 0 to 1',
    'Factor of what is beside the diagonal of Gram matrices.',
  ),
  'density': Option(
    float,
    lambda value: 0 < value <= 1,
    'a number above 0 and at most 1',
    'Share of the differences of every input to the base that is kept.',
  ),
  'gamma': Option(
    float,
    lambda value: 0 <= value < 1,
    'a number of at least 0 and below 1',
    'Share of the differences, the largest ones, that is left out.',
  ),
  'lambda': Option(float, math.isfinite, 'a finite number', 'Factor of the merged differences.'),
  'seed': Option(
    int, lambda value: value >= 0, 'a number of at least 0', 'Seed of what is kept at random.'
  ),
}


@dataclasses.dataclass(frozen=True)
class Method:
  """What a method does and needs.

  Attributes:
    mix: (part, coefficients, measured, options, dtype) -> the mixed part in that dtype. The parents
      are those with a coefficient other than 0.
    measure: (tensor, options) -> `measured`. None: the method is elementwise, and `measured` is
      None.
    base: whether the model that the parents started from must be there.
    inputs: the least and the largest number of inputs.
    coefficients: 'weights' have the sum 1 unless there is a base or another sum is allowed;
      'shares' have it always, and so do 'portions', of which none is negative; 'equal' ones choose
      among the inputs, and by default all are chosen.
    options: name in OPTIONS -> default.
    statistics: what `mix_stats` must have measured of every input: 'fisher' comes with the parts,
      'gram' with the tensors. None: nothing.
  """

  mix: Callable[[Part, Sequence[Any], Any, Options, np.dtype], Array]
  measure: Callable[[Tensor, Options], Any] | None = None
  base: Literal['none', 'optional', 'required'] = 'none'
  inputs: tuple[int, float] = (1, math.inf)
  coefficients: Literal['weights', 'shares', 'portions', 'equal'] = 'weights'
  options: Options = dataclasses.field(default_factory=dict)
  statistics: Literal['fisher', 'gram'] | None = None


METHODS: dict[str, Method] = {
  'linear': Method(linear.mix, base='optional'),
  'slerp': Method(slerp.mix, slerp.measure, inputs=(2, 2), coefficients='shares'),
  'ties': Method(ties.mix, ties.measure, base='required', options={'density': 0.2, 'lambda': 1.0}),
  'dare_linear': Method(
    dare.mix_linear, dare.measure, base='required', options={'density': 0.1, 'seed': 0}
  ),
  'dare_ties': Method(
    dare.mix_ties,
    dare.measure,
    base='required',
    options={'density': 0.1, 'lambda': 1.0, 'seed': 0},
  ),
  'breadcrumbs': Method(
    breadcrumbs.mix,
    breadcrumbs.measure,
    base='required',
    options={'density': 0.9, 'gamma': 0.01},
  ),
  'model_stock': Method(
    model_stock.mix,
    model_stock.measure,
    base='required',
    inputs=(2, math.inf),
    coefficients='equal',
  ),
  'fisher': Method(fisher.mix, coefficients='portions', statistics='fisher'),
  'regmean': Method(
    regmean.mix,
    regmean.measure,
    coefficients='portions',
    options={'alpha': regmean.ALPHA},
    statistics='gram',
  ),
}


def find(name: str) -> Method:
  """Returns the method of this name.

  Raises:
    SphinxError: there is none.
  """
  if name not in METHODS:
    raise errors.unknown('method of mixing', name, METHODS)
  return METHODS[name]


def check(name: str, parents: int, has_base: bool, statistics: int = 0) -> None:
  """Checks that a method has what it needs, and nothing that has no effect on it.

  Args:
    name: of the method.
    parents: the number of inputs.
    has_base: whether there is a base.
    statistics: the number of inputs with statistics.

  Raises:
    SphinxError: the method is unknown, or a number of inputs, the base or the statistics are wrong.
  """
  method, who = find(name), f'--method={name}'
  least, most = method.inputs
  if not least <= parents <= most:
    expected = f'{least}' if least == most else f'at least {least}'
    raise errors.make(who, f'{parents} inputs', expected, 'give others, or another method')
  if has_base and method.base == 'none':
    raise errors.make(who, 'a base', 'none', 'leave --base out, or give another method')
  if not has_base and method.base == 'required':
    raise errors.make(
      who, 'no base', 'the model that the inputs started from', 'give it with --base'
    )
  if statistics and method.statistics is None:
    raise errors.make(who, 'statistics', 'none', 'leave --statistics out, or give another method')
  if method.statistics is not None and statistics != parents:
    raise errors.make(
      who,
      f'{statistics} places of statistics',
      f'{method.statistics} statistics of each of {parents} inputs',
      'measure them (python -m sphinx_jax.mix_stats) and give them with --statistics',
    )


def settle(name: str, given: Mapping[str, float | None]) -> dict[str, float]:
  """Returns the options of a method: the given ones, and the defaults of the others.

  Args:
    name: of the method.
    given: name of an option -> its value; None: not given.

  Raises:
    SphinxError: the method does not have an option, or a value is out of range.
  """
  method = find(name)
  settled = dict(method.options)
  for option, value in given.items():
    if value is None:
      continue
    if option not in method.options:
      having = [other for other, row in METHODS.items() if option in row.options]
      raise errors.make(
        f'--{option}',
        f'{value} with --method={name}',
        f'none: it has an effect on {", ".join(having)}' if having else 'none',
        'leave it out, or give another method',
      )
    settled[option] = OPTIONS[option].kind(value)
  for option, value in settled.items():
    if not OPTIONS[option].is_valid(value):
      raise errors.make(f'--{option}', f'{value:g}', OPTIONS[option].expected, 'correct it')
  if settled.get('density', 0) + settled.get('gamma', 0) > 1:
    raise errors.make(
      f'--method={name}',
      f'a density of {settled["density"]:g} and a gamma of {settled["gamma"]:g}',
      'a sum of at most 1',
      'keep or leave out fewer differences',
    )
  return settled


def used(coefficients: Sequence[float]) -> list[int]:
  """Returns the positions of the parents that are read.

  They are those whose coefficient is not 0. If there is none, it is the first, for its shape.
  """
  return [i for i, coefficient in enumerate(coefficients) if coefficient != 0] or [0]


def whole_tensor(
  name: str,
  path: str,
  coefficients: Sequence[float],
  leaves: Sequence[Array],
  base: Array | None,
  statistics: Sequence[Array] = (),
) -> Tensor:
  """Returns a tensor that is in memory.

  Args:
    name: of the method.
    path: name of the tensor.
    coefficients: one per parent.
    leaves: of all parents.
    base: the leaf that they started from, or None.
    statistics: of all parents, see `Method.statistics`; () of a tensor without any.
  """
  numbers = used(coefficients)
  of_used = [statistics[i] for i in numbers] if statistics else []
  is_fisher = METHODS[name].statistics == 'fisher'
  part = Part([leaves[i] for i in numbers], base, 0, of_used if is_fisher else ())
  return Tensor(
    path,
    part.size,
    numbers,
    [coefficients[i] for i in numbers],
    lambda: [part],
    [] if is_fisher else [functools.partial(np.asarray, gram) for gram in of_used],
  )


def measure(name: str, tensor: Tensor, options: Options) -> Any:
  """Returns what the elementwise function of a method must know about a tensor; None of most."""
  measure_tensor = METHODS[name].measure
  return measure_tensor and any(tensor.coefficients) and measure_tensor(tensor, options)


def mix_part(
  name: str, part: Part, coefficients: Sequence[float], measured: Any, options: Options, dtype: Any
) -> Array:
  """Mixes a part of a tensor.

  Args:
    name: of the method.
    part: the part.
    coefficients: of the parents in it. If all are 0, the mix is the base, or 0.
    measured: from `measure`, of the tensor.
    options: from `settle`.
    dtype: of the mix.
  """
  if not any(coefficients):
    return linear.mix_leaf(part.leaves, coefficients, part.base, dtype)
  return METHODS[name].mix(part, coefficients, measured, options, dtype)


def mix_tensor(name: str, tensor: Tensor, options: Options, dtype: Any) -> Iterator[Array]:
  """Yields the mix of every part of a tensor; arguments as of `mix_part`."""
  measured = measure(name, tensor, options)
  for part in tensor.parts():
    yield mix_part(name, part, tensor.coefficients, measured, options, dtype)
