"""The tf.data dataset has the order of the mixture, from any window on."""

import numpy as np
import pytest

from sphinx_jax.data import sampler
from sphinx_jax.mix.tasks import Mixture

MIXTURE = Mixture((0.3, 0.7), (13, 40), seed=5, block=10)


@pytest.mark.parametrize('first', [0, 3, 10**12])
def test_windows_have_the_order_of_the_mixture(first):
  windows = sampler.make_dataset(MIXTURE, window=7, first=first).take(3).as_numpy_iterator()
  for number, columns in enumerate(windows, first):
    positions = np.arange(number * 7, number * 7 + 7)
    want = dict(zip(sampler.COLUMNS, (positions, *MIXTURE.lookup(positions))))
    assert {name: column.tolist() for name, column in columns.items()} == {
      n: c.tolist() for n, c in want.items()
    }


@pytest.mark.parametrize('examples, lengths', [(0, []), (5, [5]), (7, [7]), (16, [7, 7, 2])])
def test_a_finite_order_ends_exactly(examples, lengths):
  windows = sampler.make_dataset(MIXTURE, window=7, examples=examples).as_numpy_iterator()
  assert [len(columns['position']) for columns in windows] == lengths
