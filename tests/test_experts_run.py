"""A mixture of experts trains alike on any mesh, with its experts on one device or on several."""

import jax
import numpy as np
import pytest

from sphinx_jax.core import trees
from sphinx_jax.run import Program
from tests.tiny import MIXTURE, mixture, run

# The counts of choices are whole numbers: the routers choose alike, or these differ.
NAMES = ('loss', 'grad_norm', *(f'mean/router/share_{i}' for i in range(MIXTURE['experts'])))


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(np.asarray, Program(mixture()).init())


@pytest.fixture(scope='module')
def one_device(params):
  return run(mixture(), params, names=NAMES)


def assert_same(result, expected):
  np.testing.assert_allclose(result[0], expected[0], rtol=1e-5)
  for path, leaf in expected[1].items():
    np.testing.assert_allclose(result[1][path], leaf, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
  'sizes',
  [
    dict(data=2, expert=4),
    dict(fsdp=2, tensor=2, expert=2),
    pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    pytest.param(dict(fsdp=4, expert=2), marks=pytest.mark.slow),
    pytest.param(dict(tensor=2, expert=4), marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_any_mesh_gives_the_losses_choices_and_parameters_of_one_device(one_device, params, sizes):
  assert_same(run(mixture(sizes), params, names=NAMES), one_device)


def test_a_device_computes_all_rows_if_the_router_chooses_only_its_experts(params):
  """Rows that exceed the room of a device are sent in further rounds."""
  flat = trees.flatten(params)
  gate = 'llm/layers/feed_forward/gate/kernel'
  # Equal logits: the first experts are chosen everywhere.
  params = trees.unflatten(flat | {gate: np.zeros_like(flat[gate])})
  few = dict(params=params, steps=3, names=NAMES)
  expected = run(mixture(), **few)
  share = lambda line: np.divide(line[2:], np.sum(line[2:]))
  np.testing.assert_allclose(share(expected[0][0]), [0.5, 0.5, 0, 0], atol=1e-6)
  assert_same(run(mixture(dict(data=2, expert=4)), **few), expected)


@pytest.mark.slow  # Each is tested with dense models, and without experts on several devices.
def test_microbatches_and_remat_compute_the_same(params, one_device):
  changes = {'model.remat': 'dots', 'optimizer.accumulate': 2, 'model.llm.balance_weight': 0.0}
  plain = run(mixture(**{'model.llm.balance_weight': 0.0}), params, steps=3)
  accumulated = run(mixture(dict(expert=2), **changes), params, steps=3)
  assert_same(accumulated, plain)
