"""Relaxed accuracy: 5 % of the true number, and the official script's 5 % of the answer."""

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PROTOCOLS
from sphinx_jax.evaluation.protocols.relaxed import relaxed_match


@pytest.mark.parametrize(
  'answer, truth, right',
  [
    ('100', '100', 1),
    (' 96\n', '100', 1),
    ('94.9', '100', 0),
    ('-1.0', '-1.01', 1),
    ('1', '-1', 0),
    ('45%', '0.45', 1),
    ('45', '45%', 0),
    ('44%', '45%', 1),
    ('yes', 'Yes', 1),
    ('yes it is', 'Yes', 0),
    ('', '', 1),
    ('', '5', 0),
    ('nan', '5', 0),
    ('inf', '5', 0),
  ],
)
def test_both_variants_agree_on_these(answer, truth, right):
  assert relaxed_match(answer, truth) == relaxed_match(answer, truth, official=True) == right


@pytest.mark.parametrize(
  'answer, truth, right',
  [
    ('105', '100', 1),
    ('95.2', '100', 1),  # Within 5 % of both.
    ('105.2', '100', 0),
    ('94.9', '100', 0),
  ],
)
def test_the_tolerance_is_relative_to_the_true_number(answer, truth, right):
  assert relaxed_match(answer, truth) == right


def test_difference_the_tolerance_of_the_script_is_relative_to_the_answer():
  assert relaxed_match('105.2', '100') == 0 and relaxed_match('105.2', '100', official=True) == 1
  assert relaxed_match('95', '100') == 1 and relaxed_match('95', '100', official=True) == 0


def test_difference_a_number_may_have_a_unit_and_separators():
  for answer, truth in [
    *(('1,000', '1000'), ('$1,234.50', '1234.5'), ('1 234 567', '1234567'), ('€5', '5')),
    *(('45%', '45'), ('45 percent', '0.45'), ('12 people', '12'), ('3.2 km/h', '3.2')),
    *(('3 million', '3'), ('3 million', '3000000'), ('5K', '5000'), ('about 45.', '45')),
    *(('**45**', '45'), ('The answer is 45.', '45'), ('−5', '-5'), ('Yes.', 'yes')),
    *(('–5', '-5'), ('"45"', '45'), ('(45)', '45'), ('\\boxed{45\\%}', '45'), ('x = 5', '5')),
    *(('1.234,56', '1234.56'), ("1'234", '1234'), ('The value is 45.', '45'), ('“Blue”', 'blue')),
    *(('100 million people', '100000000'), ('5 m^2', '5')),
  ]:
    assert relaxed_match(answer, truth) == 1, answer
    assert relaxed_match(answer, truth, official=True) == 0, answer
  for answer, truth in [
    *(('1,00', '100'), ('12 or 13', '12'), ('5 out of 10', '5'), ('10-12', '10'), ('-5', '5')),
    *(('45', '45%'), ('450%', '45'), ('3 million', '3000'), ('1.000', '1000')),
  ]:
    assert relaxed_match(answer, truth) == 0, answer


def test_difference_the_script_compares_an_answer_of_zero_as_text():
  assert relaxed_match('0', '0.0') == 1 and relaxed_match('0', '0.0', official=True) == 0
  assert relaxed_match('0', '0') == relaxed_match('0', '0', official=True) == 1
  assert (
    relaxed_match('0.01', '0')
    == relaxed_match('0', '0.01')
    == relaxed_match('0', '0.01', official=True)
    == 0
  )


def test_difference_equal_text_is_right_even_if_it_is_not_a_finite_number():
  assert relaxed_match('NaN', 'nan') == 1 and relaxed_match('NaN', 'nan', official=True) == 0


def test_any_of_several_true_answers_is_right():
  assert relaxed_match('7', ['x', '7']) == relaxed_match('7', ['x', '7'], official=True) == 1
  with pytest.raises(SphinxError, match='no true answer'):
    relaxed_match('7', [])


def test_the_protocol_averages():
  entries = [{'answer': '105.2', 'gt_answers': '100'}, {'answer': 'No', 'gt_answers': 'no'}]
  assert PROTOCOLS['relaxed_accuracy'](entries) == {'relaxed_accuracy': 0.5}
  assert PROTOCOLS['relaxed_accuracy'](entries, official=True) == {'relaxed_accuracy': 1.0}
  with pytest.raises(SphinxError, match='no entries'):
    PROTOCOLS['relaxed_accuracy']([])
