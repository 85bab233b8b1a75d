"""Records what mergekit makes of small tensors: see README.md beside this file."""

import pathlib
from unittest import mock

import numpy as np
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import PerInputValues, TensorGroup

HERE = pathlib.Path(__file__).parent
WEIGHTS = (0.5, 0.3, 0.9)  # Of the three inputs.
SHAPES = {'matrix': (12, 16), 'vector': (10,)}
DENSITY = 0.4  # Of DARE, whose masks are recorded, too.
# Name of the recording -> (method, its parameters beside the weights, has a base).
CASES = {
  'linear': ('linear', {}, False),
  'task_arithmetic': ('task_arithmetic', {}, True),
  'ties': ('ties', {'density': 0.2}, True),
  'ties_lambda': ('ties', {'density': 0.55, 'lambda': 1.7}, True),
  # What mergekit multiplies by where we divide by the density.
  'dare_linear': (
    'dare_linear',
    {'density': DENSITY, 'rescale': False, 'lambda': 1 / DENSITY},
    True,
  ),
  'dare_ties': (
    'dare_ties',
    {'density': DENSITY, 'rescale': False, 'normalize': True, 'lambda': 1 / DENSITY},
    True,
  ),
  'breadcrumbs': ('breadcrumbs', {'density': 0.7, 'gamma': 0.1}, True),
  'model_stock': ('model_stock', None, True),
}
PER_INPUT = ('density', 'gamma')


def run(method, parameters, tensors, has_base):
  """The result of one method; tensors are the base, then the inputs."""
  group = TensorGroup.from_tensors(
    tensors if has_base else tensors[1:], base_index=0 if has_base else None
  )
  ids = [entry.id for entry in group.entries if not entry.is_base]
  values = {}
  if parameters is not None:
    values['weight'] = PerInputValues(list(zip(ids, WEIGHTS)))
    for name, value in parameters.items():
      values[name] = PerInputValues([(key, value) for key in ids]) if name in PER_INPUT else value
  return registry.get(method)([group], parameters=values)[0]


def main() -> None:
  recorded = {}
  for number, (name, shape) in enumerate(SHAPES.items()):
    rng = np.random.default_rng(number)
    base = rng.standard_normal(shape).astype(np.float32)
    common = rng.standard_normal(shape)
    inputs = [
      (base + 0.1 * (common + rng.standard_normal(shape))).astype(np.float32) for _ in WEIGHTS
    ]
    masks = [rng.random(shape) < DENSITY for _ in WEIGHTS]
    recorded |= {f'{name}/base': base, f'{name}/inputs': inputs, f'{name}/masks': masks}
    tensors = [torch.from_numpy(value) for value in (base, *inputs)]
    for case, (method, parameters, has_base) in CASES.items():
      draws = [torch.from_numpy(mask).float() for mask in masks]
      with mock.patch.object(torch, 'bernoulli', side_effect=draws):
        recorded[f'{name}/{case}'] = run(method, parameters, tensors, has_base).numpy()
    pair = TensorGroup.from_tensors(tensors[1:3], base_index=0)
    recorded[f'{name}/slerp'] = registry.get('slerp')([pair], parameters={'t': 0.7})[0].numpy()
  np.savez_compressed(HERE / 'recorded.npz', **recorded)


if __name__ == '__main__':
  main()
