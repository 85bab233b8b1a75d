"""Properties of every task family."""

import json
import random

import numpy as np
import pytest

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import TASKS
from tests.tasks import scenes


def turns(name, annotation=scenes.SCENE, seed=0, max_turns=4):
  return TASKS[name].turns(annotation, np.random.default_rng(seed), max_turns)


@pytest.mark.parametrize('name', scenes.NAMES)
def test_the_table_holds_the_task_under_its_name(name):
  assert TASKS[name].name == name


@pytest.mark.parametrize('name', scenes.SCORED)
@pytest.mark.parametrize('seed', range(20))
def test_own_answers_score_one_and_others_zero(name, seed):
  for turn in turns(name, seed=seed):
    got, most = TASKS[name].score(turn.answer, turn.truth)
    assert got == most > 0, turn
    got, most = TASKS[name].score('no idea [0.98, 0.98, 0.99, 0.99]', turn.truth)
    assert got == 0 < most, turn


@pytest.mark.parametrize('name', scenes.NAMES)
def test_turns_are_a_function_of_annotation_and_seed(name):
  assert turns(name, seed=3) == turns(name, seed=3)


@pytest.mark.parametrize('name', [name for name in scenes.NAMES if name != 'dialog'])
def test_the_wording_varies_with_the_seed(name):
  task = TASKS[name]
  assert 3 <= len(task.instructions) == len(set(task.instructions)) <= 5
  heard = {turns(name, seed=seed)[0].instruction for seed in range(100)}
  fixed = {text for text in task.instructions if '{}' not in text}
  assert len(heard) >= len(task.instructions) and fixed <= heard


@pytest.mark.parametrize('name', [name for name in scenes.NAMES if name != 'dialog'])
@pytest.mark.parametrize('most', [1, 2, 5])
def test_max_turns_is_kept_and_no_question_is_asked_twice(name, most):
  for seed in range(10):
    questions = [turn.instruction for turn in turns(name, seed=seed, max_turns=most)]
    assert 1 <= len(questions) <= most and len(set(questions)) == len(questions)


@pytest.mark.parametrize('name', scenes.NAMES)
def test_truth_is_json(name):
  for turn in turns(name):
    assert json.loads(json.dumps(turn.truth)) == turn.truth


@pytest.mark.parametrize('name', scenes.NAMES)
def test_an_empty_annotation_is_a_bad_example(name):
  with pytest.raises(BadExample) as caught:
    for seed in range(20):
      turns(name, scenes.EMPTY, seed)
  assert caught.value.reason in ('nothing to ask', 'empty answer')


@pytest.mark.parametrize('name', scenes.NAMES)
def test_any_text_can_be_scored(name):
  rng = random.Random(0)
  truths = [turn.truth for turn in turns(name)]
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
    '1',
    '9',
    '-',
    'cup',
    'nose',
    'red',
    'Text',
    '\n',
    'é',
    '٣',
  ]
  for _ in range(300):
    text = ''.join(rng.choices(pieces, k=rng.randrange(40)))
    for truth in truths:
      got, most = TASKS[name].score(text, truth)
      assert 0 <= got <= most


@pytest.mark.parametrize('name', ['rec', 'reg', 'grounded_caption', 'detection', 'layout', 'pose'])
@pytest.mark.parametrize(
  'box',
  [
    [-0.1, 0, 0.5, 0.5],
    [0, 0, 0.5, 1.1],
    [0.5, 0, 0.5, 0.5],
    [0.5, 0.5, 0.2, 0.9],
    [float('nan'), 0, 0.5, 0.5],
    [0, 0, 1],
  ],
)
def test_a_box_outside_the_image_is_a_bad_example(name, box):
  scene = {
    'objects': [scenes.thing('cup', 'red', box)],
    'blocks': [{'label': 'Text', 'box': box}],
    'people': [{**scenes.PERSON, 'box': box}],
  }
  with pytest.raises(BadExample) as caught:
    turns(name, scene)
  assert caught.value.reason == 'box outside the image'


@pytest.mark.parametrize('name', ['rec', 'reg', 'grounded_caption', 'detection', 'layout', 'pose'])
def test_boxes_may_touch_the_edges(name):
  box = [0.0, 0, 1.0, 1]
  scene = {
    'objects': [scenes.thing('cup', 'red', box)],
    'blocks': [{'label': 'Text', 'box': box}],
    'people': [{**scenes.PERSON, 'box': box}],
  }
  [turn] = turns(name, scene)
  assert TASKS[name].score(turn.answer, turn.truth) in [(1, 1), (2, 2), (16, 16)]
  assert '1.0' not in turn.answer + turn.instruction
