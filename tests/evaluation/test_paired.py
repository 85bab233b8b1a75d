"""Paired comparisons against cases that can be computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from sphinx_jax.core import errors
from sphinx_jax.evaluation import paired


def answers(scores):
  return {f'q{number}': (float(score), 1.0) for number, score in enumerate(scores)}


def test_holm_multiplies_by_the_number_of_hypotheses_that_are_left():
  values = {'a': 0.01, 'b': 0.04, 'c': 0.03, 'd': 0.5}
  assert paired.holm(values) == pytest.approx({'a': 0.04, 'c': 0.09, 'b': 0.09, 'd': 0.5})
  assert paired.holm({'a': 0.6, 'b': 0.7}) == {'a': 1.0, 'b': 1.0}
  assert paired.holm({'a': 0.02, 'b': None}) == {'a': 0.02, 'b': None}
  assert paired.holm({}) == {}


def test_questions_alone_give_the_interval_of_a_paired_t_test():
  """Two equal seeds have no noise of training, so only that of the questions is left."""
  rng = np.random.default_rng(0)
  baseline, changed = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
  result = paired.compare({'vqa': [answers(changed)] * 2}, {'vqa': [answers(baseline)] * 2})['vqa']
  test = stats.ttest_rel(changed, baseline)
  low, high = test.confidence_interval(0.95)
  assert result.difference == pytest.approx(np.mean(changed - baseline))
  assert (result.low, result.high) == pytest.approx((low, high), abs=0.05 * (high - low))
  assert result.p == pytest.approx(test.pvalue, abs=0.03)


def test_seeds_alone_give_the_interval_of_a_t_test_of_their_differences():
  """Every question is answered alike, so only the noise of training is left."""
  differences = [0.02, 0.05, 0.11]
  changed = [answers([0.4 + difference] * 20) for difference in differences]
  result = paired.compare({'vqa': changed}, {'vqa': [answers([0.4] * 20)] * 3})['vqa']
  test = stats.ttest_1samp(differences, 0)
  assert result.by_seed == pytest.approx(differences)
  assert (result.low, result.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
  assert result.p == pytest.approx(test.pvalue)


def test_noise_that_both_sides_share_cancels():
  """A hard question is hard for both: pairs give a far narrower interval than two scores do."""
  hard = np.random.default_rng(1).uniform(0, 1, 300)
  result = paired.compare({'vqa': [answers(hard + 0.1)] * 2}, {'vqa': [answers(hard)] * 2})['vqa']
  assert result.difference == pytest.approx(0.1)
  assert result.high - result.low < 1e-6 and result.p < 1e-6


def test_answers_to_other_questions_are_not_compared():
  other = {'validation/0': (1.0, 1.0)}
  with pytest.raises(
    errors.SphinxError, match="'rec': got no example in common .like 'validation.0' and 'q0'"
  ):
    paired.compare(
      {'vqa': [answers([1])], 'rec': [other]}, {'vqa': [answers([1])], 'rec': [answers([0])]}
    )


def test_ratios_of_sums_weight_questions_and_the_mean_weights_tasks_equally():
  changed = {
    'f1': [{'a': (2.0, 4.0), 'b': (6.0, 6.0)}] * 2,
    'vqa': [{'a': (1.0, 1.0), 'b': (1.0, 1.0)}] * 2,
  }
  baseline = {
    'f1': [{'a': (0.0, 2.0), 'b': (2.0, 2.0)}] * 2,
    'vqa': [{'a': (0.0, 1.0), 'b': (1.0, 1.0)}] * 2,
  }
  result = paired.compare(changed, baseline)
  assert result['f1'].changed == pytest.approx(0.8) and result['f1'].baseline == pytest.approx(0.5)
  assert result[paired.MEAN].difference == pytest.approx((0.3 + 0.5) / 2)


def test_the_mean_over_tasks_keeps_the_answers_about_one_image_together():
  """Two tasks with equal differences on the same images are no more evidence than one."""
  rng = np.random.default_rng(2)
  baseline, changed = (answers(rng.integers(0, 2, 200)) for _ in range(2))
  result = paired.compare(
    {task: [changed] * 2 for task in ('rec', 'reg')},
    {task: [baseline] * 2 for task in ('rec', 'reg')},
  )
  for field in ('low', 'high', 'p'):
    assert getattr(result[paired.MEAN], field) == pytest.approx(getattr(result['rec'], field))


def test_questions_that_one_side_lacks_are_left_out():
  changed = {'vqa': [{'a': (1.0, 1.0)}, {'a': (1.0, 1.0)}]}
  baseline = {'vqa': [{'a': (1.0, 1.0), 'b': (0.0, 1.0)}] * 2}
  assert paired.compare(changed, baseline)['vqa'].difference == 0


def test_three_seeds_of_pure_noise_are_seldom_called_a_difference():
  """Percentiles of resampled seeds would call a quarter of these studies one."""
  rng, found = np.random.default_rng(3), 0
  for _ in range(200):
    noise = rng.normal(0, 0.05, 3)
    changed = [answers([0.5 + shift] * 10) for shift in noise]
    result = paired.compare({'vqa': changed}, {'vqa': [answers([0.5] * 10)] * 3}, resamples=20)
    found += result['vqa'].p < 0.05
  assert found <= 20


@pytest.mark.parametrize(
  'difference, p, lower_is_better, words',
  [
    (0.0312, 0.01, False, 'better by 0.031'),
    (-0.12, 0.05, False, 'worse by 0.120'),
    (-0.12, 0.05, True, 'better by 0.120'),
    (0.2, 0.001, True, 'worse by 0.200'),
    (0.3, 0.0501, False, 'no difference seen'),
    (0.0, 1.0, False, 'no difference seen'),
    (0.3, None, False, 'no verdict from one seed'),
  ],
)
def test_the_verdict_is_in_words(difference, p, lower_is_better, words):
  result = paired.Difference(0.5, 0.5 + difference, difference, 0, 0, p, ())
  assert paired.verdict(result, p, lower_is_better) == words


def test_one_seed_has_an_interval_of_its_questions_and_no_p_value():
  result = paired.compare({'vqa': [answers([1, 1, 0, 1])]}, {'vqa': [answers([0, 1, 0, 1])]})['vqa']
  assert result.p is None and math.isfinite(result.low) and result.low < 0.25 < result.high
