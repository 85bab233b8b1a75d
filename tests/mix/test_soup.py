"""The greedy soup on losses that are known in advance."""

import pytest

from sphinx_jax.mix import soup


def measured(losses):
  """A measure of these losses, and the mixes it was asked for."""
  asked = []

  def measure(row):
    asked.append(tuple(i for i, share in enumerate(row) if share))
    assert sum(row) == pytest.approx(1) and len({share for share in row if share}) == 1
    return losses[asked[-1]]

  return measure, asked


def test_inputs_are_tried_from_the_best_and_stay_if_the_loss_does_not_rise():
  losses = {(0,): 3, (1,): 1, (2,): 2, (1, 2): 1.1, (0, 1): 1, (0, 1, 2): 5}
  measure, asked = measured(losses)
  chosen = soup.greedy(3, measure)
  assert asked == [(0,), (1,), (2,), (1, 2), (0, 1), (0, 1, 2)]
  assert chosen == soup.Soup((0.5, 0.5, 0), 1, order=(1, 2, 0), kept=(1, 0))


def test_the_soup_is_not_worse_than_the_uniform_mix():
  losses = {(0,): 1, (1,): 2, (2,): 3, (0, 1): 1.5, (0, 2): 1.5, (0, 1, 2): 0.5}
  chosen = soup.greedy(3, measured(losses)[0])
  assert chosen.coefficients == (1 / 3, 1 / 3, 1 / 3) and chosen.loss == 0.5
  assert chosen.kept == (0,)


def test_one_good_input_is_taken_as_it_is():
  chosen = soup.greedy(2, measured({(0,): 2, (1,): 1, (0, 1): 1.5})[0])
  assert chosen.coefficients == (0, 1) and chosen.loss == 1
