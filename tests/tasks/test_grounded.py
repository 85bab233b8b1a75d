"""Tasks that answer with boxes and points: their text, and the scores of partly right answers."""

import numpy as np
import pytest

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import TASKS, caption, pose
from tests.tasks import scenes


def one(name, annotation=scenes.SCENE, seed=0):
  return TASKS[name].turns(annotation, np.random.default_rng(seed), 1)[0]


def test_detection_text_goes_left_to_right_by_class():
  turn = one('detection')
  assert (
    turn.answer
    == 'circle [0.05, 0.10, 0.25, 0.30], cup [0.60, 0.12, 0.90, 0.40; 0.62, 0.60, 0.88, 0.95]'
  )
  score = TASKS['detection'].score
  assert score('cup [0.60, 0.12, 0.90, 0.40]', turn.truth) == (2, 4)  # One found, two missed.
  assert score(turn.answer + ', hat [0, 0, 0.1, 0.1]', turn.truth) == (6, 7)
  assert score(turn.answer.replace('circle', 'star'), turn.truth) == (4, 6)
  assert score('cup [0.60, 0.12, 0.90, 0.40; 0.60, 0.12, 0.90, 0.40]', turn.truth) == (
    2,
    5,
  )  # A repeated box is wrong.


def test_detection_order_does_not_depend_on_the_annotation():
  backwards = {**scenes.SCENE, 'objects': scenes.OBJECTS[::-1]}
  assert one('detection', backwards) == one('detection')


def test_grounded_caption_text():
  turn = one('grounded_caption')
  assert turn.answer == (
    'a <p>red circle</p>[0.05, 0.10, 0.25, 0.30], a <p>blue cup</p>[0.60, 0.12, 0.90, 0.40] '
    'and an <p>orange cup</p>[0.62, 0.60, 0.88, 0.95]'
  )
  assert TASKS['grounded_caption'].score(turn.answer.replace('blue', 'green'), turn.truth) == (4, 6)
  single = one('grounded_caption', {'objects': scenes.OBJECTS[:1]})
  assert single.answer == 'a <p>red circle</p>[0.05, 0.10, 0.25, 0.30]'


def test_layout_text_is_in_reading_order():
  assert (
    one('layout').answer
    == 'Title [0.20, 0.05, 0.80, 0.15], Text [0.10, 0.30, 0.90, 0.50; 0.10, 0.60, 0.90, 0.90]'
  )


def test_rec_reads_the_first_box_and_only_asks_for_unique_things():
  score, truth = TASKS['rec'].score, {'box': [0.1, 0.2, 0.5, 0.6]}
  assert score('The box is [0.1, 0.2, 0.5, 0.6].', truth) == (1, 1)
  assert score('[0.1, 0.2, 0.5, 0.6] and [0.9, 0.9, 1, 1]', truth) == (1, 1)
  assert score('[0.9, 0.9, 1, 1] and [0.1, 0.2, 0.5, 0.6]', truth) == (0, 1)
  assert score('[0.1, 0.2, 0.5, 0.4]', truth) == (1, 1)  # IoU 0.5 is enough.
  twins = {
    'objects': [
      scenes.OBJECTS[0],
      {**scenes.OBJECTS[0], 'box': [0.5, 0.5, 0.8, 0.8]},
      scenes.OBJECTS[1],
    ]
  }
  assert {one('rec', twins, seed).truth['label'] for seed in range(20)} == {'blue cup'}


def test_reg_needs_color_and_kind_and_names_without_color_work():
  truth = {'answer': 'red circle'}
  assert TASKS['reg'].score('The red circle.', truth) == (1, 1)
  assert TASKS['reg'].score('circle', truth) == TASKS['reg'].score('blue circle', truth) == (0, 1)
  assert (
    one('reg', {'objects': [{'name': 'man in a hat', 'box': [0, 0, 1, 1]}]}).answer
    == 'man in a hat'
  )


def test_pose_text_and_score():
  turn = one('pose')
  assert (
    turn.answer.startswith('nose [0.20, 0.10], left eye [0.22, 0.1')
    and 'right ankle' not in turn.answer
  )
  far = {
    name: [x + 0.081, y] for name, (x, y) in turn.truth['keypoints'].items()
  }  # size 0.8: reach 0.08
  near = {name: [x + 0.079, y] for name, (x, y) in turn.truth['keypoints'].items()}
  assert (
    pose.score(turn.answer, {**turn.truth, 'keypoints': near})[0] > 12
  )  # rounding to two decimals costs some
  assert pose.score(
    'nose [0.2, 0.1], nose [0.9, 0.9], hand [0.2, 0.1], left eye [0.2, 0.1, 0.3, 0.3]', turn.truth
  ) == (1, 16)
  assert pose.score('nose [0.2, 0.1]', {**turn.truth, 'keypoints': {'nose': far['nose']}}) == (0, 1)


def test_several_people_are_told_apart_by_their_boxes():
  other = {**scenes.PERSON, 'box': [0.1, 0.05, 0.7, 0.95]}
  asked = TASKS['pose'].turns({'people': [scenes.PERSON, other]}, np.random.default_rng(0), 2)
  assert (
    all('[0.' in turn.instruction for turn in asked)
    and len({turn.instruction for turn in asked}) == 2
  )
  assert '[' not in one('pose').instruction


def test_bad_keypoints():
  points = scenes.PERSON['keypoints']
  for wrong in (points[:5], [[1.2, 0.5, 2]] * 17, [[0, 0, 0]] * 17):
    with pytest.raises(BadExample):
      one('pose', {'people': [{**scenes.PERSON, 'keypoints': wrong}]})


def test_caption_scores_things_not_words():
  truth = {'answer': 'a red circle and a blue cup'}
  assert caption.score('there is a blue cup, and the red circle', truth) == (4, 4)
  assert caption.score('a blue circle and a red cup', truth) == (0, 4)
  assert caption.score('a red circle', truth) == (2, 3)
  assert caption.score('', truth) == (0, 2)


@pytest.mark.parametrize(
  'text, expected',
  [
    (
      'a small red circle in the upper left and an orange cup at the top.',
      {'red circle', 'orange cup'},
    ),
    ('the word sun in red in the lower right.', {'sun', 'red'}),
    ('red, blue', {'red', 'blue'}),
    (
      'a page with Section-header at the top and text in the middle.',
      {'section', 'header', 'text'},
    ),
    ('a person waving with the left hand', {'waving', 'hand'}),
    ('img 23 ... 0.55', {'img'}),
    ('', set()),
  ],
)
def test_things_of_a_caption(text, expected):
  assert caption.things(text) == expected


def test_text_is_continued_where_the_instruction_stops():
  whole = 0
  for seed in range(40):
    turn = one('text', seed=seed)
    shown = turn.instruction.partition(': ')[2] or turn.instruction.partition('? ')[2]
    assert f'{shown} {turn.answer}'.strip() == scenes.SCENE['text']
    whole += not shown
  assert 0 < whole < 40
  assert one('text', {'text': 'hello'}).answer == 'hello'
