"""Question answering: what is asked, and that the wording does not give the answer away."""

import collections

import numpy as np
import pytest

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import ocr, relation, task as base, vqa
from tests.tasks import scenes


def ask(task, annotation, seed, max_turns=1):
  return task.TASK.turns(annotation, np.random.default_rng(seed), max_turns)


def random_scene(seed):
  rng = np.random.default_rng(seed)
  pairs = [
    (name, color)
    for name in ('circle', 'cup', 'car', 'star')
    for color in ('red', 'blue', 'green', 'pink')
  ]
  things = []
  for i in rng.permutation(len(pairs))[: rng.integers(1, 5)]:
    x, y = rng.uniform(0, 0.75, 2)
    things.append(scenes.thing(*pairs[i], [x, y, x + 0.2, y + 0.2]))
  return {'objects': things}


def test_normal_form_of_short_answers():
  assert base.normalize(' The  Red\tCircle. ') == 'red circle'
  assert base.normalize('"yes!"') == 'yes'
  assert base.normalize('theatre') == 'theatre'
  assert base.exact_match('A red circle.', {'answer': 'red circle'}) == (1, 1)
  assert base.exact_match('', {'answer': 'red circle'}) == (0, 1)


def test_vqa_asks_every_family_and_the_answers_are_right():
  objects = scenes.OBJECTS
  rng = np.random.default_rng(0)
  answers = {
    name: {answer for _, answer in family(objects, rng)}
    for name, family in vqa.QUESTION_KINDS.items()
  }
  assert answers == {
    'color': {'red'},  # There are two cups, so their color is not asked.
    'kind': {'circle', 'cup'},
    'presence': {'yes', 'no'},
    'number': {'3'},
    'position': {'upper left', 'upper right', 'lower right'},
  }


def test_vqa_presence_is_balanced_and_true():
  counts = collections.Counter()
  for seed in range(300):
    objects = random_scene(seed)['objects']
    there = {base.expression(item) for item in objects}
    for question, answer in vqa.QUESTION_KINDS['presence'](objects, np.random.default_rng(seed)):
      assert (answer == 'yes') == any(question.endswith(f' {name}?') for name in there)
      counts[answer] += 1
  assert counts['yes'] == counts['no'] > 100


def test_vqa_families_take_turns():
  counts = collections.Counter()
  for seed in range(200):
    counts[ask(vqa, scenes.SCENE, seed)[0].truth['answer']] += 1
  # One fifth each: red | circle or cup | yes or no | 3 | corners.
  for family in (
    ['red'],
    ['circle', 'cup'],
    ['yes', 'no'],
    ['3'],
    ['upper left', 'upper right', 'lower right'],
  ):
    assert 20 <= sum(counts[answer] for answer in family) <= 65


def test_vqa_of_one_object_and_of_a_thing_in_the_middle():
  one = {'objects': [scenes.thing('cup', 'red', [0.4, 0.4, 0.6, 0.6])]}
  answers = {turn.answer for turn in ask(vqa, one, 0, 9)}
  assert answers == {'red', 'cup', '1'}


def test_only_the_first_turn_carries_the_hint():
  seen = set()
  for seed in range(40):
    first, *rest = ask(vqa, scenes.SCENE, seed, 3)
    seen.add('using a single word' in first.instruction)
    assert not any('Answer' in turn.instruction for turn in rest)
  assert seen == {True, False}


def test_ocr_points_by_color_or_place():
  other = [{**scenes.WORDS[0], 'color': 'red'}, scenes.WORDS[1]]
  questions = {
    q.split('\n')[0]
    for seed in range(80)
    for q in [ask(ocr, {'words': other}, seed)[0].instruction]
  }
  assert any('red' in q for q in questions) and any('at the top' in q for q in questions)
  for seed in range(40):
    [turn] = ask(ocr, scenes.SCENE, seed)
    assert ('at the top' in turn.instruction) == (turn.answer == 'sun')
    assert 'blue' not in turn.instruction  # Both are blue.


def test_ocr_of_one_word_and_of_words_that_cannot_be_told_apart():
  assert ask(ocr, {'words': scenes.WORDS[:1]}, 0)[0].answer == 'sun'
  with pytest.raises(BadExample):
    ask(ocr, {'words': [scenes.WORDS[0], {**scenes.WORDS[0], 'text': 'key'}]}, 0)


@pytest.mark.parametrize(
  'dx,dy,expected',
  [
    (-0.3, 0.1, 'left of'),
    (0.3, -0.1, 'right of'),
    (0, -0.3, 'above'),
    (0.1, 0.3, 'below'),
    (0.3, 0.3, None),
    (0.05, 0, None),
    (0, 0, None),
  ],
)
def test_direction_and_its_opposite(dx, dy, expected):
  a = {'box': [0.4 + dx, 0.4 + dy, 0.6 + dx, 0.6 + dy]}
  b = {'box': [0.4, 0.4, 0.6, 0.6]}
  opposite = {
    'left of': 'right of',
    'right of': 'left of',
    'above': 'below',
    'below': 'above',
    None: None,
  }
  assert base.direction(a, b) == expected
  assert base.direction(b, a) == opposite[expected]


def test_relations_are_true_and_balanced():
  counts, subjects = collections.Counter(), 0
  for seed in range(600):
    scene = random_scene(seed)
    try:
      [turn] = ask(relation, scene, seed)
    except BadExample:
      continue
    counts[turn.answer] += 1
    named = [item for item in scene['objects'] if base.expression(item) in turn.instruction]
    if turn.answer in base.DIRECTIONS:
      assert len(named) == 2
      a, b = sorted(named, key=lambda item: turn.instruction.index(base.expression(item)))
      assert base.direction(a, b) == turn.answer
    else:
      subjects += 1
      [b] = named
      [predicate] = [p for p in base.DIRECTIONS if p in turn.instruction]
      assert [
        base.expression(c)
        for c in scene['objects']
        if c is not b and base.direction(c, b) == predicate
      ] == [turn.answer]
  shares = [counts[predicate] for predicate in base.DIRECTIONS]
  assert max(shares) < 0.35 * sum(shares) and min(shares) > 0.15 * sum(shares)
  assert 0.05 < subjects / sum(counts.values()) < 0.3
