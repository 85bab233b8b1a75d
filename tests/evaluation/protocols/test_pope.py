"""POPE: how answers are parsed, and the five metrics by hand."""

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS, pope


def entries(pairs):
  return [{'gt_answers': truth, 'answer': answer} for truth, answer in pairs]


@pytest.mark.parametrize(
  'answer, word',
  [
    ('Yes', 'yes'),
    ('yes.', 'yes'),
    ('No', 'no'),
    ('No, there is none', 'no'),
    ('There is not a dog.', 'no'),
    ('no. Yes', 'no'),
    ('Yes. There is no cat', 'yes'),
    ('nothing', 'yes'),
    ('', 'yes'),
    ('NO', 'yes'),
  ],
)
def test_answers_are_parsed_as_by_the_script_of_the_benchmark(answer, word):
  assert pope.yes_or_no(answer) == word


def test_numbers_by_hand():
  # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
  lines = entries(
    [('yes', 'Yes')] * 3 + [('no', 'Yes')] + [('yes', 'No')] * 2 + [('no', 'No.')] * 4
  )
  assert PROTOCOLS['pope'](lines) == pytest.approx(
    {'accuracy': 0.7, 'precision': 3 / 4, 'recall': 3 / 5, 'f1': 6 / 9, 'yes ratio': 0.4}
  )
  assert PER_EXAMPLE['pope'](lines) == [1] * 3 + [0] * 3 + [1] * 4
  assert PROTOCOLS['pope'](lines, official=True) == PROTOCOLS['pope'](lines)


def test_perfect_and_wrong():
  truths = ['yes', 'no', 'no']
  assert PROTOCOLS['pope'](entries((t, t) for t in truths))['f1'] == 1
  wrong = PROTOCOLS['pope'](entries((t, {'yes': 'no', 'no': 'yes'}[t]) for t in truths))
  assert (wrong['accuracy'], wrong['precision'], wrong['recall'], wrong['f1']) == (0, 0, 0, 0)


def test_without_any_yes_the_ratios_are_zero():
  assert PROTOCOLS['pope'](entries([('no', 'no')]))['f1'] == 0


def test_a_skipped_question_is_wrong_whatever_the_truth():
  lines = [
    {'gt_answers': truth, 'answer': '', 'skipped': 'missing image'} for truth in ('yes', 'no')
  ]
  assert PER_EXAMPLE['pope'](lines) == [0, 0] and PROTOCOLS['pope'](lines)['accuracy'] == 0


def test_another_true_answer_is_an_error():
  with pytest.raises(SphinxError, match="true answer 'maybe'"):
    PROTOCOLS['pope'](entries([('maybe', 'yes')]))
