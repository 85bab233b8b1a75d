"""Annotations that only real datasets have: expressions, classes, relations, phrases, dialogs."""

import collections
import json

import numpy as np
import pytest

from sphinx_jax.core import coordinates
from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import TASKS, classes, counting, detection, layout, pose, relation
from tests.tasks import scenes


def thing(name, x, y=0.1, **more):
  return {'name': name, 'box': [x, y, x + 0.2, y + 0.2], **more}


CROWD = {**thing('person', 0.5, 0.6), 'crowd': True}
COCO = {
  'objects': [
    thing('cup', 0.7),
    thing('dog', 0.1),
    thing('cup', 0.2, 0.5),
    thing('person', 0.4),
    CROWD,
  ],
  'classes': ['person', 'dog', 'cup', 'mouse', 'bus'],
}
LVIS = {
  'objects': [thing('cup', 0.7), thing('dog', 0.1), thing('hat', 0.4)],
  'classes': ['cup', 'dog', 'hat', 'ship', 'owl', 'pea'],
  'absent': ['owl'],
  'partial': ['hat', 'pea'],
}
PAGE = {'blocks': scenes.BLOCKS, 'classes': ['Title', 'Text', 'Table']}
REFERRED = {
  'objects': [
    thing('person', 0.1, expressions=['the man on the left', 'red shirt', 'person']),
    thing('person', 0.5, expressions=['man standing.', 'Person']),
    thing('dog', 0.3, 0.6),
    thing('cup', 0.7, crowd=True, expressions=['a pile of cups']),
  ]
}
RELATED = {
  'objects': [
    thing('man', 0.1),
    thing('horse', 0.4),
    thing('man', 0.7),
    thing('hat', 0.1, 0.7),
    CROWD,
  ],
  'relations': [
    {'subject': 0, 'predicate': 'riding', 'object': 1},
    {'subject': 0, 'predicate': 'on', 'object': 1},
    {'subject': 0, 'predicate': 'on', 'object': 3},
    {'subject': 1, 'predicate': 'near', 'object': 2},
    {'subject': 1, 'predicate': 'near', 'object': 1},
    {'subject': 1, 'predicate': 'near', 'object': 4},
  ],
}
SENTENCE = {
  'phrases': [
    {'text': 'Two men', 'boxes': [[0.1, 0.1, 0.3, 0.9], [0.5, 0.1, 0.7, 0.9]]},
    {'text': ' hold ', 'boxes': []},
    {'text': 'a cup', 'boxes': [[0.3, 0.4, 0.4, 0.5]]},
    {'text': ' in the sun.'},
  ]
}


def person(x, joints=range(17), **more):
  return {
    'box': [x, 0.1, x + 0.2, 0.9],
    'keypoints': [
      [x + 0.01 * i, 0.1 + 0.04 * i, 2] if i in joints else [0, 0, 0] for i in range(17)
    ],
    **more,
  }


PEOPLE = {
  'people': [
    person(0.6, range(3, 9)),
    person(0.1, range(2, 17)),
    person(0.3, ()),
    person(0.4, crowd=True),
  ],
  'every': True,
}
GIVEN = [
  ('rec', REFERRED),
  ('reg', REFERRED),
  ('detection', COCO),
  ('detection', LVIS),
  ('counting', COCO),
  ('counting', LVIS),
  ('layout', PAGE),
  ('relation', RELATED),
  ('grounded_caption', SENTENCE),
  ('pose', PEOPLE),
  ('caption', {'caption': 'a dog', 'captions': ['a dog', 'a brown dog.']}),
]


def ask(task, annotation, seed=0, max_turns=3):
  return TASKS[task].turns(annotation, np.random.default_rng(seed), max_turns)


def many(task, annotation, max_turns=3, seeds=100):
  return [turn for seed in range(seeds) for turn in ask(task, annotation, seed, max_turns)]


@pytest.mark.parametrize('task, annotation', GIVEN)
def test_answers_parse_back_to_the_truth_and_others_do_not(task, annotation):
  for turn in many(task, annotation):
    got, most = TASKS[task].score(turn.answer, turn.truth)
    assert got == most > 0, turn
    for wrong in ('no idea', 'green hill [0.98, 0.98, 0.99, 0.99]', ''):
      got, most = TASKS[task].score(wrong, turn.truth)
      assert got == 0 < most, turn
    assert json.loads(json.dumps(turn.truth)) == turn.truth


@pytest.mark.parametrize('task, annotation', GIVEN)
def test_questions_are_a_function_of_the_seed_within_max_turns(task, annotation):
  for most in (1, 2, 9):
    for seed in range(20):
      turns = ask(task, annotation, seed, most)
      assert turns == ask(task, annotation, seed, most) and 1 <= len(turns) <= most
      assert len({turn.instruction for turn in turns}) == len(turns)


@pytest.mark.parametrize('task, annotation', GIVEN)
def test_any_text_can_be_scored(task, annotation):
  rng = np.random.default_rng(0)
  pieces = [
    '[',
    ']',
    '<p>',
    '</p>',
    ';',
    ',',
    ' ',
    '.',
    '0',
    '9',
    '-',
    '\n',
    'é',
    '\x00',
    '1e400',
    'cup',
    'nose',
    'person',
    'None',
  ]
  truths = [turn.truth for turn in many(task, annotation, seeds=10)]
  for _ in range(200):
    text = ''.join(rng.choice(pieces, rng.integers(30)))
    for truth in truths:
      got, most = TASKS[task].score(text, truth)
      assert 0 <= got <= most > 0


def test_expressions_are_asked_for_and_only_those_that_name_one_thing():
  asked = many('rec', REFERRED)
  assert {turn.truth['label'] for turn in asked} == {
    'the man on the left',
    'red shirt',
    'man standing.',
  }
  assert 'Where is the man on the left?' in {turn.instruction for turn in asked}
  assert TASKS['rec'].instructions[0].format('the man on the left') in {
    turn.instruction for turn in asked
  }
  first = REFERRED['objects'][0]['box']
  assert all(turn.truth['box'] == first for turn in asked if turn.truth['label'] == 'red shirt')
  with pytest.raises(BadExample):
    ask('rec', {'objects': [thing('cup', 0.1, crowd=True, expressions=['a pile'])]})


def test_reg_accepts_every_expression_of_the_thing():
  asked = many('reg', REFERRED)
  assert {turn.answer for turn in asked} == {'the man on the left', 'man standing.'}
  [turn] = [turn for turn in ask('reg', REFERRED) if '[0.10' in turn.instruction]
  assert all(
    TASKS['reg'].score(said, turn.truth) == (1, 1)
    for said in ('Red shirt.', 'man on the left', 'a person')
  )
  assert TASKS['reg'].score('man standing', turn.truth) == (0, 1)


def test_a_caption_is_scored_by_the_nearest_reference():
  truth = {'answer': 'a dog', 'answers': ['a dog', 'a brown dog on a sofa']}
  assert TASKS['caption'].score('a dog on a sofa', truth) == (2, 3)
  assert TASKS['caption'].score('brown dog, sofa', truth) == (4, 4)


def test_detection_asks_for_all_or_for_one_class_that_may_not_be_there():
  answers = collections.defaultdict(set)
  for turn in many('detection', COCO, max_turns=1, seeds=400):
    name = next((name for name in COCO['classes'] if f' {name}' in turn.instruction), 'all')
    assert (name == 'all') == (turn.instruction in detection.INSTRUCTIONS)
    answers[name].add(turn.answer)
  assert answers == {
    'all': {
      'dog [0.10, 0.10, 0.30, 0.30], cup [0.20, 0.50, 0.40, 0.70; 0.70, 0.10, 0.90, 0.30], '
      'person [0.40, 0.10, 0.60, 0.30]'
    },
    'dog': {'dog [0.10, 0.10, 0.30, 0.30]'},
    'cup': {'cup [0.20, 0.50, 0.40, 0.70; 0.70, 0.10, 0.90, 0.30]'},
    'person': {'person [0.40, 0.10, 0.60, 0.30]'},
    'mouse': {'None'},
    'bus': {'None'},
  }
  assert TASKS['detection'].score('dog [0.1, 0.1, 0.3, 0.3]', {'labels': [], 'boxes': []}) == (0, 2)
  assert TASKS['detection'].score('none.', {'labels': [], 'boxes': []}) == (2, 2)


def test_a_list_that_may_be_incomplete_is_asked_only_for_what_is_known():
  asked = {turn.instruction for turn in many('detection', LVIS)}
  assert {text.split()[-1].strip('.') for text in asked if text.startswith('Detect all')} == {
    'cup',
    'dog',
    'owl',
  }
  answers = {turn.answer for turn in many('detection', LVIS)}
  assert answers == {'cup [0.70, 0.10, 0.90, 0.30]', 'dog [0.10, 0.10, 0.30, 0.30]', 'None'}
  with pytest.raises(BadExample) as caught:
    ask('detection', {**LVIS, 'objects': [thing('hat', 0.1)]})
  assert caught.value.reason == 'nothing to ask'


def test_a_crowd_is_neither_there_nor_absent():
  crowd = {'objects': [CROWD, thing('dog', 0.1)], 'classes': ['person', 'dog', 'cup']}
  for task in ('detection', 'counting'):
    assert not any(
      'person' in turn.instruction or 'people' in turn.instruction for turn in many(task, crowd)
    )


def test_many_objects_are_asked_for_by_class_and_all_answers_are_whole():
  grid = [
    {'name': ('cup', 'dog')[i % 2], 'box': [x, y, x + 0.08, y + 0.08]}
    for i, (x, y) in enumerate(
      (0.1 * a + 0.01, 0.1 * b + 0.01) for a in range(10) for b in range(10)
    )
  ]
  asked = many('detection', {'objects': grid, 'classes': ['cup', 'dog']}, seeds=20)
  assert not {turn.instruction for turn in asked} & set(detection.INSTRUCTIONS)
  [everything] = ask('detection', {'objects': grid})
  for turn in [*asked, everything]:
    got, most = TASKS['detection'].score(turn.answer, turn.truth)
    assert got == most == 2 * len(turn.truth['boxes'])
  assert len(everything.truth['boxes']) == 100 > classes.MANY


def test_layout_asks_for_one_class_in_reading_order():
  answers = {
    turn.answer for turn in many('layout', PAGE) if turn.instruction not in layout.INSTRUCTIONS
  }
  assert answers == {
    'Title [0.20, 0.05, 0.80, 0.15]',
    'Text [0.10, 0.30, 0.90, 0.50; 0.10, 0.60, 0.90, 0.90]',
    'None',
  }
  assert {turn.instruction for turn in many('layout', PAGE)} >= {
    *layout.INSTRUCTIONS,
    'Detect all Text of the page.',
  }
  assert {turn.instruction for turn in many('layout', {'blocks': scenes.BLOCKS})} == set(
    layout.INSTRUCTIONS
  )


def test_counting_counts_what_can_be_counted():
  answers = collections.defaultdict(set)
  for turn in many('counting', COCO):
    answers[
      next(name for name in ('cups', 'dogs', 'mice', 'buses', 'people') if name in turn.instruction)
    ].add(turn.answer)
  assert answers == {'cups': {'2'}, 'dogs': {'1'}, 'mice': {'0'}, 'buses': {'0'}}
  assert {turn.answer for turn in many('counting', LVIS)} == {'1', '0'}
  assert {turn.answer for turn in many('counting', scenes.SCENE)} == {
    '1',
    '2',
  }  # No zero if the classes are unknown.
  hints = [turn.instruction.count('single word') for turn in ask('counting', COCO)]
  assert sum(hints[1:]) == 0


@pytest.mark.parametrize(
  'one, more',
  [
    ('dining table', 'dining tables'),
    ('Person', 'people'),
    ('wine glass', 'wine glasses'),
    ('bench', 'benches'),
    ('teddy bear', 'teddy bears'),
    ('bus', 'buses'),
    ('skis', 'skis'),
    ('toothbrush', 'toothbrushes'),
    ('berry', 'berries'),
    ('key', 'keys'),
    ('', 's'),
  ],
)
def test_plurals(one, more):
  assert counting.plural(one) == more


def test_relations_are_asked_as_given_with_boxes_where_names_are_not_enough():
  asked = {(turn.instruction, turn.answer) for turn in many('relation', RELATED, seeds=300)}
  man, other = 'man [0.10, 0.10, 0.30, 0.30]', 'man [0.70, 0.10, 0.90, 0.30]'
  question = relation.INSTRUCTIONS[0]
  assert {(q, a) for q, a in asked if q.startswith('What is the relation')} == {
    (question.format(man, 'horse'), 'riding'),
    (question.format(man, 'horse'), 'on'),
    (question.format(man, 'hat'), 'on'),
    (question.format('horse', other), 'near'),
  }
  things = {q: a for q, a in asked if q.startswith('Complete with')}
  horse, hat = 'horse [0.40, 0.10, 0.60, 0.30]', 'hat [0.10, 0.70, 0.30, 0.90]'
  assert things == {
    f'Complete with a name and a box: {man} on': f'{horse}, {hat}',
    f'Complete with a name and a box: {man} riding': horse,
    'Complete with a name and a box: horse near': other,
  }
  score, truth = (
    TASKS['relation'].score,
    {'labels': ['horse', 'hat'], 'boxes': [[0.4, 0.1, 0.6, 0.3], [0.1, 0.7, 0.3, 0.9]]},
  )
  assert score(hat, truth) == (pytest.approx(2 / 3), 1)
  with pytest.raises(BadExample):
    ask('relation', {**RELATED, 'relations': []})


def test_a_grounded_sentence_is_the_given_one_with_boxes():
  [turn] = ask('grounded_caption', SENTENCE)
  assert turn.answer == (
    '<p>Two men</p>[0.10, 0.10, 0.30, 0.90; 0.50, 0.10, 0.70, 0.90] hold '
    '<p>a cup</p>[0.30, 0.40, 0.40, 0.50] in the sun.'
  )
  assert turn.truth['labels'] == ['Two men', 'Two men', 'a cup']
  with pytest.raises(BadExample) as caught:
    ask('grounded_caption', {'phrases': [{'text': 'It rains.', 'boxes': []}]})
  assert caught.value.reason == 'nothing to ask'


def test_people_are_pointed_out_or_all_told_of_from_left_to_right():
  asked = many('pose', PEOPLE)
  everyone = [turn for turn in asked if pose.EVERYONE in turn.instruction]
  assert 0 < len(everyone) < len(asked)
  lines = everyone[0].answer.split('\n')
  assert [line[:34] for line in lines] == [
    'person [0.10, 0.10, 0.30, 0.90]: r',
    'person [0.60, 0.10, 0.80, 0.90]: l',
  ]
  assert all('[0.' in turn.instruction for turn in asked if turn not in everyone)
  alone = {turn.instruction for turn in many('pose', {**PEOPLE, 'people': PEOPLE['people'][:1]})}
  assert {text for text in alone if text.startswith('Detect')} == {
    'Detect the keypoints of the person in [0.60, 0.10, 0.80, 0.90].',
    'Detect the keypoints of every person.',
  }
  crowd = {'people': [person(0.1 * i) for i in range(pose.FEW + 1)], 'every': True}
  assert not any(pose.EVERYONE in turn.instruction for turn in many('pose', crowd))
  for nobody in (PEOPLE['people'][2:], []):
    with pytest.raises(BadExample):
      ask('pose', {'people': nobody, 'every': True})


def test_everyones_pose_is_scored_person_by_person():
  turn = next(turn for turn in many('pose', PEOPLE) if pose.EVERYONE in turn.instruction)
  first, second = turn.answer.split('\n')
  assert pose.score(f'{second}\n{first}', turn.truth) == (21, 21)
  assert pose.score(first, turn.truth) == (15, 21)
  assert pose.score(second, turn.truth) == (6, 21)
  assert pose.score(f'{second} {second}', turn.truth) == (6, 21)  # No person counts twice.
  points = ', '.join(part.partition(': ')[2] for part in (first, second))
  assert pose.score(points, turn.truth)[0] < 21  # Without boxes it is unknown whose they are.


def test_dialogs_are_whole_and_documents_stand_alone():
  turns = [
    ['What is this?', ' A cup.\n'],
    [None, 'Left of it is more.'],
    ['And?', 'That is right.'],
  ]
  assert [
    (turn.instruction, turn.answer) for turn in ask('dialog', {'turns': turns}, max_turns=1)
  ] == [('What is this?', ' A cup.\n'), (None, 'Left of it is more.'), ('And?', 'That is right.')]
  assert not TASKS['dialog'].mirrors and TASKS['dialog'].score('anything', {}) == (0, 0)
  for wrong in ([], [['What?', ' ']], [['', 'A cup.']], [['What?', None]], [[7, 'A cup.']]):
    with pytest.raises(BadExample):
      ask('dialog', {'turns': wrong})
  [turn] = ask('text', {'text': 'One line.\n\nAnother.\n', 'document': True})
  assert (turn.instruction, turn.answer) == (None, 'One line.\n\nAnother.')
  with pytest.raises(BadExample):
    ask('text', {'text': ' \n', 'document': True})


def test_keypoints_of_several_people_are_read_by_the_common_grammar():
  turn = next(turn for turn in many('pose', PEOPLE) if pose.EVERYONE in turn.instruction)
  labels = [label for label, _ in coordinates.parse_groups(turn.answer)]
  assert labels.count('person') == 2 and set(labels) <= {'person', *coordinates.KEYPOINTS}
