"""The rule by which weights of tasks follow held-out losses."""

import math

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.mix.learned import learned_weights

FIRST = {'vqa': 2.0, 'rec': 1.0, 'ocr': 1.0}
SHARES = {'vqa': 0.5, 'rec': 0.25, 'ocr': 0.25}
REFERENCES = {'vqa': 0.2, 'rec': 0.5, 'ocr': 3.0}


def learn(losses, first=FIRST, rate=2.0, floor=0.0):
  return learned_weights(first, losses, REFERENCES, rate, floor)


def test_tasks_that_are_equally_far_behind_keep_their_shares():
  for behind in (0.0, 0.7, 500.0):
    losses = {task: reference + behind for task, reference in REFERENCES.items()}
    assert learn(losses) == pytest.approx(SHARES)


def test_a_task_that_is_behind_gets_more_and_the_others_share_the_rest():
  behind = REFERENCES | {'rec': 0.5 + math.log(3) / 2}  # A factor of exp(2 * log(3) / 2) = 3.
  assert learn(behind) == pytest.approx({'vqa': 2 / 6, 'rec': 3 / 6, 'ocr': 1 / 6})
  assert learn(behind, floor=0.5) == pytest.approx({'vqa': 5 / 12, 'rec': 3 / 8, 'ocr': 5 / 24})
  assert learn(behind, floor=1.0) == pytest.approx(SHARES)


def test_a_task_below_its_reference_is_as_one_that_has_reached_it():
  assert learn(REFERENCES | {'vqa': 0.0}) == learn(REFERENCES)


def test_no_task_falls_below_the_floor_and_the_sum_is_1():
  weights = learn({'vqa': 1e4, 'rec': 0.5, 'ocr': 0.1}, floor=0.4)
  assert weights == pytest.approx({'vqa': 0.8, 'rec': 0.1, 'ocr': 0.1})
  assert sum(weights.values()) == pytest.approx(1)


def test_a_task_without_weight_stays_without_and_needs_no_loss():
  weights = learn({'vqa': 9.0, 'rec': 0.5}, {'vqa': 1, 'rec': 3, 'ocr': 0}, floor=0.2)
  assert weights['ocr'] == 0 and weights['vqa'] > 0.25 and list(weights) == ['vqa', 'rec', 'ocr']


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss):
  with pytest.raises(SphinxError, match="task 'rec': got a held-out loss of (nan|inf)"):
    learn(REFERENCES | {'rec': loss})
