"""ANLS: the goldens of the official evaluator, and where the definition differs from it."""

import json
import pathlib

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PROTOCOLS, anls

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / 'golden/eval/anls.json').read_text())


@pytest.mark.parametrize('a, b, distance', GOLDEN['levenshtein'])
def test_edit_distance(a, b, distance):
  assert anls.levenshtein(a, b) == anls.levenshtein(b, a) == distance


@pytest.mark.parametrize('sample', GOLDEN['samples'], ids=lambda sample: sample['pred'])
def test_both_variants_give_the_goldens(sample):
  # No sample with an error has extra white space or a character whose upper case is longer.
  for official in (False, True):
    assert anls.anls(sample['pred'], sample['answers'], official) == pytest.approx(
      sample['score'], abs=1e-12
    )


@pytest.mark.parametrize(
  'answer, truth, similarity, official',
  [
    ('abx', ' abc ', 2 / 3, 4 / 5),  # White space lowers the weight of an error.
    ('a   b', 'a c', 2 / 3, 4 / 5),
    ('b', '   ', 0, 2 / 3),  # With enough white space any answer passes.
    ('strasse', 'straße', 5 / 7, 5 / 7),
    ('ß', 'ßa', 0.5, 2 / 3),  # 'ß' counts twice in upper case.
  ],
)
def test_difference_the_length_is_that_of_the_compared_texts(answer, truth, similarity, official):
  assert anls.anls(answer, truth) == pytest.approx(similarity)
  assert anls.anls(answer, truth, official=True) == pytest.approx(official)


def test_the_nearest_answer_counts_and_a_similarity_of_one_half_is_kept():
  assert anls.anls('abcd', ['zzzz', 'abxx']) == 0.5
  assert anls.anls('abcde', ['abxxx']) == 0
  assert anls.anls('', ['', 'x']) == anls.anls(' ', '') == 1


def test_no_true_answer_is_an_error():
  with pytest.raises(SphinxError, match='no true answer'):
    anls.anls('x', [])


def test_the_protocol_averages_over_texts_and_lists():
  entries = [
    {'answer': '0.28', 'gt_answers': '0.28'},
    {'answer': 'no', 'gt_answers': ['yes', 'maybe']},
  ]
  assert PROTOCOLS['anls'](entries) == {'anls': 0.5}


def test_markup_counts_where_the_true_answer_has_it():
  for answer, truth in [('**ab**', 'ab'), ('"ab"', '"ab"'), ('"ab"', 'ab'), ('$5$', '$5$')]:
    assert PROTOCOLS['anls']([{'answer': answer, 'gt_answers': truth}]) == {'anls': 1}
