"""The change between two images, and which of them has more."""

import collections

import numpy as np
import pytest

from sphinx_jax.data.record import MARK, BadExample
from sphinx_jax.tasks import difference
from tests.tasks import scenes

RED, BLUE, ORANGE = scenes.OBJECTS  # A circle and two cups.
TREE = scenes.thing('tree', 'red', RED['box'])


def ask(first, second, seed=0, most=4):
  annotation = {'objects': first, 'second': second}
  return difference.turns(annotation, np.random.default_rng(seed), most)


@pytest.mark.parametrize(
  'first, second, answer',
  [
    ([RED], [RED, ORANGE], 'an orange cup is added'),
    ([RED, BLUE], [BLUE], 'the red circle is removed'),
    ([RED, BLUE], [BLUE, TREE], 'the red circle becomes a red tree'),
    ([BLUE], [ORANGE], 'the blue cup becomes an orange cup'),
  ],
)
def test_the_change_is_named(first, second, answer):
  answers = {turn.answer for seed in range(20) for turn in ask(first, second, seed, 1)}
  assert answer in answers
  assert answers <= {answer, 'the first', 'the second', 'both the same'}


@pytest.mark.parametrize(
  'first, second, by_answer',
  [
    (
      [RED],
      [RED, BLUE],
      {
        'the second': {'objects', 'cups', 'blue things'},
        'both the same': {'circles', 'red things'},
      },
    ),
    (
      [RED],
      [TREE],
      {
        'the first': {'circles'},
        'the second': {'trees'},
        'both the same': {'objects', 'red things'},
      },
    ),
  ],
)
def test_numbers_are_compared(first, second, by_answer):
  heard = collections.defaultdict(set)
  for seed in range(60):
    for turn in ask(first, second, seed)[1:]:
      if 'more' in turn.instruction:
        heard[turn.answer].add(turn.instruction.split('has more ')[1].rstrip('?'))
  assert heard == by_answer


def test_the_first_question_has_both_images_and_the_others_none():
  firsts = collections.Counter()
  for seed in range(200):
    first, *rest = ask([RED, BLUE], [TREE, BLUE], seed)
    assert first.instruction.count(MARK) == 2
    assert not any(MARK in turn.instruction for turn in rest)
    firsts[first.answer] += 1
  assert 70 < firsts.pop('the red circle becomes a red tree') < 130
  assert len(firsts) == 3 and min(firsts.values()) > 15


def test_two_changes_and_equal_images_are_only_compared():
  for second in ([TREE, ORANGE], [RED, BLUE]):
    turns = [turn for seed in range(20) for turn in ask([RED, BLUE], second, seed)]
    assert turns and all('more' in turn.instruction for turn in turns)
  with pytest.raises(BadExample):
    ask([], [])


@pytest.mark.parametrize(
  'answer, change',
  [
    ('An orange cup was added.', (None, 'orange cup')),
    ('The red circle is gone', ('red circle', None)),
    ('the red cup is now a blue cup', ('red cup', 'blue cup')),
    ('the red cup', None),
    ('', None),
  ],
)
def test_other_words_for_a_change_are_read(answer, change):
  assert difference.parse(answer) == change


def test_a_change_in_other_words_is_right_and_another_change_is_wrong():
  truth = {'answer': difference.describe('red cup', None), 'before': 'red cup', 'after': None}
  assert difference.score('The red cup was removed.', truth) == (1, 1)
  for wrong in ('a red cup is added', 'the red cup becomes a blue cup', 'the blue cup is removed'):
    assert difference.score(wrong, truth) == (0, 1)
