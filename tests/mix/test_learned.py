"""The rule by which weights of tasks follow held-out losses."""

import math

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.mix.learned import learned_weights

FIRST = {'vqa': 2.0, 'rec': 1.0, 'ocr': 1.0}
SHARES = {'vqa': 0.5, 'rec': 0.25, 'ocr': 0.25}
REFERENCES = {'vqa': 0.2, 'rec': 0.5, 'ocr': 3.0}


def learn(losses, first=FIRST, limit=10.0):
  return learned_weights(first, losses, REFERENCES, 2.0, limit)


def test_tasks_that_are_equally_far_behind_keep_their_shares():
  for behind in (0.0, 0.7, 500.0):
    losses = {task: reference + behind for task, reference in REFERENCES.items()}
    assert learn(losses) == pytest.approx(SHARES)


def test_a_task_that_is_behind_gets_more_and_the_others_share_the_rest():
  behind = REFERENCES | {'rec': 0.5 + math.log(3) / 2}  # A factor of exp(2 * log(3) / 2) = 3.
  assert learn(behind) == pytest.approx({'vqa': 2 / 6, 'rec': 3 / 6, 'ocr': 1 / 6})


def test_a_task_below_its_reference_is_as_one_that_has_reached_it():
  assert learn(REFERENCES | {'vqa': 0.0}) == learn(REFERENCES)


def test_the_factors_of_weights_are_limited():
  behind = REFERENCES | {'rec': 1e4}  # Factors of 1.2, and of 1 / 1.2 for the others.
  limited = learn(behind, limit=1.2)
  assert limited == pytest.approx({'vqa': 50 / 111, 'rec': 36 / 111, 'ocr': 25 / 111})
  assert sum(limited.values()) == pytest.approx(1)
  assert learn(REFERENCES | {'vqa': 1e4}, limit=2) == pytest.approx(
    {'vqa': 0.8, 'rec': 0.1, 'ocr': 0.1}
  )
  assert learn(behind, limit=1.0) == pytest.approx(SHARES)


def test_a_task_without_weight_stays_without_and_needs_no_loss():
  weights = learn({'vqa': 9.0, 'rec': 0.5}, {'vqa': 1, 'rec': 3, 'ocr': 0})
  assert weights['ocr'] == 0 and weights['vqa'] > 0.25 and list(weights) == ['vqa', 'rec', 'ocr']


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss):
  with pytest.raises(SphinxError, match="task 'rec': got a held-out loss of (nan|inf)"):
    learn(REFERENCES | {'rec': loss})
