"""Exact match, multiple choice and GQA: the official goldens, and where ours differs from them."""

import json
import pathlib
import random

import pytest

from sphinx_jax.core import answers
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PROTOCOLS, multiple_choice
from sphinx_jax.evaluation.protocols.exact_match import exact_match
from sphinx_jax.evaluation.protocols.gqa import gqa_match, short_answer

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[2] / 'golden/eval/exact_match.json').read_text()
)


@pytest.mark.parametrize('sample', GOLDEN['samples'], ids=lambda sample: repr(sample['answer']))
def test_both_variants_of_exact_match_give_the_goldens(sample):
  assert exact_match(sample['answer'], sample['annotation'], official=True) == sample['score']
  if sample['answer'] != '35':  # The script drops the period of 3.5 as well.
    assert exact_match(sample['answer'], sample['annotation']) == sample['score']


def test_difference_a_decimal_point_counts():
  assert exact_match('35', '3.5', official=True) == 1
  assert exact_match('35', '3.5') == PROTOCOLS['accuracy'](numbers('35', '3.5'))['accuracy'] == 0
  assert (
    exact_match('3.5.', '3.5') == PROTOCOLS['accuracy'](numbers('3.50', '3.5'))['accuracy'] == 1
  )


def numbers(answer, truth):
  return [{'answer': answer, 'gt_answers': truth}]


def test_difference_any_of_several_true_answers_is_right():
  assert exact_match('Dog.', ['cat', 'dog']) == 1 and exact_match('cow', ['cat', 'dog']) == 0
  with pytest.raises(SphinxError, match='the official script crashes on a list'):
    exact_match('dog', ['cat', 'dog'], official=True)


@pytest.mark.parametrize('sample', GOLDEN['multiple_choice'], ids=lambda sample: sample['answer'])
def test_official_choices_are_the_goldens(sample):
  entry = {'answer': sample['answer'], 'gt_answers': sample['gt']}
  score = PROTOCOLS['accuracy']([entry], official=True, seed=1)
  assert score == {'accuracy': sample['score_with_random_seed_1']}


@pytest.mark.parametrize('sample', GOLDEN['multiple_choice'], ids=lambda sample: sample['answer'])
def test_difference_the_letter_may_stand_anywhere_in_the_answer(sample):
  # All goldens name the right letter, also 'F. no' and those for which the script draws a letter.
  assert PROTOCOLS['accuracy']([{'answer': sample['answer'], 'gt_answers': sample['gt']}]) == {
    'accuracy': 1
  }


def test_difference_an_answer_without_a_letter_is_wrong_and_not_random():
  entries = [{'answer': 'I do not know', 'gt_answers': letter} for letter in 'ABCDE' * 200]
  assert PROTOCOLS['accuracy'](entries) == {'accuracy': 0}
  drawn = [
    PROTOCOLS['accuracy'](entries, official=True, seed=seed)['accuracy'] for seed in (1, 1, 2)
  ]
  assert drawn[0] == drawn[1] != drawn[2] and drawn == pytest.approx([0.2] * 3, abs=0.05)
  rng = random.Random(1)
  # One random stream serves a whole run.
  assert [multiple_choice.official_choice('?', letter, rng) for letter in 'BEACA'] == [1] * 5


@pytest.mark.parametrize(
  'answer, letter',
  [
    ('C', 'C'),
    (' c.\n', 'C'),
    ('(C)', 'C'),
    ('C: the cat', 'C'),
    ('C) the cat', 'C'),
    ('The answer is (C).', 'C'),
    ('Answer:C', 'C'),
    ('J', 'J'),
    ('', None),
    ('A cat', None),
    ('the answer is a dog', None),
    ('AB', None),
    ('cat', None),
  ],
)
def test_the_letter_of_an_answer(answer, letter):
  assert answers.choice(answer) == letter


def test_texts_other_than_letters_are_compared_whole():
  pairs = [('Crickets.', 'crickets'), ('A', 'a'), ('4', '5')]
  entries = [{'answer': answer, 'gt_answers': truth} for answer, truth in pairs]
  for official in (False, True):
    assert PROTOCOLS['accuracy'](entries, official=official) == {'accuracy': pytest.approx(2 / 3)}


@pytest.mark.parametrize('sample', GOLDEN['gqa_dataset'], ids=lambda sample: sample['answer'])
def test_difference_gqa_scores_the_short_answer_inside_a_sentence(sample):
  assert gqa_match(sample['answer'], sample['gt'], official=True) == sample['score']
  assert gqa_match(sample['answer'], sample['gt']) == 1  # Every golden is right in a sentence.


@pytest.mark.parametrize(
  'answer, short',
  [
    ('pizza slice', 'pizza slice'),
    ('This is red', 'red'),
    ('office', 'office'),
    ('an island', 'island'),
    ('', ''),
  ],
)
def test_the_short_answer_is_cut_at_whole_words(answer, short):
  assert short_answer(answer) == short


def test_a_gqa_answer_that_is_right_as_a_whole_stays_right():
  assert gqa_match('bottle of water', 'bottle of water') == 1
  entries = [
    {'answer': 'It is a dog.', 'gt_answers': 'dog'},
    {'answer': 'a cat', 'gt_answers': 'dog'},
  ]
  assert PROTOCOLS['gqa_accuracy'](entries) == {'gqa_accuracy': 0.5}
  assert PROTOCOLS['gqa_accuracy'](entries, official=True) == {'gqa_accuracy': 0}
