"""The search on quadratics whose minimum is known."""

import math

import numpy as np
import pytest

from sphinx_jax.mix import search

GROUPS = ('llm/.*', '.*')
MINIMUM = np.array([[0.7, 0.2, 0.1], [0.05, 0.35, 0.6]])


def quadratic(rules) -> float:
  return float(((np.array([row for _, row in rules]) - MINIMUM) ** 2).sum())


def test_the_search_finds_the_minimum_of_a_quadratic():
  found = search.search(GROUPS, 3, quadratic, evaluations=300)
  assert [pattern for pattern, _ in found.coefficients] == list(GROUPS)
  np.testing.assert_allclose([row for _, row in found.coefficients], MINIMUM, atol=0.02)
  assert all(sum(row) == pytest.approx(1, abs=1e-12) for _, row in found.coefficients)
  assert found.measured <= 300 and found.loss == quadratic(found.coefficients)


def test_one_number_is_searched():
  found = search.search(['.*'], 2, lambda rules: (rules[0][1][0] - 0.81) ** 2, evaluations=60)
  assert found.coefficients[0][1][0] == pytest.approx(0.81, abs=0.002)


def test_inputs_and_the_uniform_mix_are_measured_first_and_bound_the_result():
  asked = []

  def measure(rules):
    asked.append([row for _, row in rules])
    return 0 if asked[-1] == [(0, 1), (0, 1)] else 1

  found = search.search(GROUPS, 2, measure, evaluations=9)
  assert asked[:3] == [[(1, 0)] * 2, [(0, 1)] * 2, [(0.5, 0.5)] * 2] and len(asked) == 9
  assert found.coefficients == tuple((group, (0, 1)) for group in GROUPS) and found.loss == 0


def test_the_seed_decides_which_mixes_are_measured():
  def asked(seed):
    np.random.seed(seed + 1)  # Must not matter.
    rows = []
    search.search(GROUPS, 3, lambda rules: rows.append(rules) or quadratic(rules), 40, seed)
    return rows

  state = np.random.get_state()[1].copy()
  search.search(GROUPS, 3, quadratic, 20)
  np.testing.assert_array_equal(np.random.get_state()[1], state)
  assert asked(0) == asked(0) and asked(0) != asked(1)
  assert asked(0)[:4] == asked(1)[:4]


def test_a_loss_that_is_no_number_is_the_worst():
  def measure(rules):
    return quadratic(rules) if rules[0][1][0] > 0.4 else math.nan

  found = search.search(GROUPS, 3, measure, evaluations=200)
  assert found.loss < 0.01


def test_coefficients_are_thousandths_of_a_softmax():
  rows = search.rows_of(np.array([0, 0, math.log(2), -50]), 3)
  assert rows[0] == (0.334, 0.333, 0.333) and rows[1] == (0.333, 0.667, 0)
