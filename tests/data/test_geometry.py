"""Boxes, keypoints, relations and texts on the padded square, mirrored or not."""

import collections
import copy

import numpy as np
import pytest

from sphinx_jax.core import coordinates
from sphinx_jax.data import geometry

WIDTH, HEIGHT = 41, 30  # The padding is 5 above and 6 below.


def thing(name, box, **more):
  return {'name': name, 'box': box, **more}


def example():
  """An annotation in pixels with every list, completely inside the image."""
  return {
    'id': 'left_3',
    'size': (WIDTH, HEIGHT),
    'caption': 'Left of the dog, RIGHT here',
    'captions': ['the right one'],
    'questions': [
      {
        'id': 'left-1',
        'question': 'What is on the left?',
        'answer': 'right shoe',
        'answers': ['left', 'copyright'],
        'choices': ['left', 'up'],
        'context': 'The leftmost cup.',
        'instruction': 'Left or right: {}',
      }
    ],
    'objects': [
      thing(
        'left shoe',
        [1, 2, 11, 22],
        id='right',
        expressions=['man at right-hand side', 'upright man'],
      ),
      thing('dog', [20, 0, 41, 30], crowd=True),
    ],
    'classes': ['left shoe', 'dog'],
    'absent': ['right shoe'],
    'relations': [{'subject': 1, 'predicate': 'to the left of', 'object': 0}],
    'phrases': [
      {'text': 'The left one', 'boxes': [[0, 0, 5, 5], [4, 4, 9, 9]]},
      {'text': ' waits.', 'boxes': []},
    ],
    'people': [
      {
        'box': [0, 0, 20, 20],
        'keypoints': [[float(i), float(2 * i), 2.0] for i in range(16)] + [[0.0, 0.0, 0]],
      }
    ],
  }


def in_pixels(annotation):
  """The inverse of `on_square` for things inside the image, of WIDTH x HEIGHT pixels."""

  def point(x, y):
    return [x * WIDTH, y * WIDTH - (WIDTH - HEIGHT) // 2]

  result = copy.deepcopy(annotation)
  for name in ('objects', 'people'):
    for item in result[name]:
      item['box'] = point(*item['box'][:2]) + point(*item['box'][2:])
  for person in result['people']:
    person['keypoints'] = [
      [*point(x, y), v] if v else [0.0, 0.0, 0] for x, y, v in person['keypoints']
    ]
  for piece in result['phrases']:
    piece['boxes'] = [point(*box[:2]) + point(*box[2:]) for box in piece['boxes']]
  return result


def same(a, b):
  """Whether two annotations are equal, numbers up to rounding."""
  if isinstance(a, dict):
    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
  if isinstance(a, (list, tuple)):
    return len(a) == len(b) and all(map(same, a, b))
  return a == b if isinstance(a, str) else a == pytest.approx(b, abs=1e-9)


def test_boxes_and_keypoints_are_padded():
  placed = geometry.on_square(example(), WIDTH, HEIGHT)
  assert placed['objects'][0]['box'] == pytest.approx([1 / 41, 7 / 41, 11 / 41, 27 / 41])
  assert placed['phrases'][0]['boxes'][1] == pytest.approx([4 / 41, 9 / 41, 9 / 41, 14 / 41])
  assert placed['people'][0]['keypoints'][3] == pytest.approx([3 / 41, 11 / 41, 2])
  tall = geometry.on_square({'blocks': [{'label': 'Text', 'box': [0, 0, 30, 41]}]}, 30, 41)
  assert tall['blocks'][0]['box'] == pytest.approx([5 / 41, 0, 35 / 41, 1])


def test_only_coordinates_change_and_the_argument_does_not():
  annotation = example()
  assert same(in_pixels(geometry.on_square(annotation, WIDTH, HEIGHT)), annotation)
  geometry.on_square(annotation, WIDTH, HEIGHT, mirrored=True)
  geometry.scaled(annotation, 2, 3)
  assert annotation == example()


def test_a_mirror_exchanges_left_and_right_in_texts_but_not_in_ids():
  mirrored = geometry.on_square(example(), WIDTH, HEIGHT, mirrored=True)
  assert mirrored['caption'] == 'Right of the dog, LEFT here' and mirrored['captions'] == [
    'the left one'
  ]
  assert mirrored['questions'] == [
    {
      'id': 'left-1',
      'question': 'What is on the right?',
      'answer': 'left shoe',
      'answers': ['right', 'copyright'],
      'choices': ['right', 'up'],
      'context': 'The rightmost cup.',
      'instruction': 'Left or right: {}',
    }
  ]
  shoe = mirrored['objects'][0]
  assert (shoe['name'], shoe['id'], shoe['expressions']) == (
    'right shoe',
    'right',
    ['man at left-hand side', 'upright man'],
  )
  assert (
    mirrored['classes'] == ['right shoe', 'dog']
    and mirrored['absent'] == ['left shoe']
    and mirrored['id'] == 'left_3'
  )
  assert mirrored['relations'] == [{'subject': 1, 'predicate': 'to the right of', 'object': 0}]
  assert [piece['text'] for piece in mirrored['phrases']] == ['The right one', ' waits.']


def test_a_mirror_moves_boxes_and_exchanges_the_keypoints_of_both_sides():
  mirrored = geometry.on_square(example(), WIDTH, HEIGHT, mirrored=True)
  assert mirrored['objects'][0]['box'] == pytest.approx([30 / 41, 7 / 41, 40 / 41, 27 / 41])
  points = dict(zip(coordinates.KEYPOINTS, mirrored['people'][0]['keypoints']))
  assert points['nose'] == pytest.approx([1, 5 / 41, 2])
  assert points['left eye'] == pytest.approx(
    [(41 - 2) / 41, 9 / 41, 2]
  )  # The right eye of the original image.
  assert points['left ankle'] == [0, 0, 0] and points['right ankle'][2] == 2


def test_two_mirrors_are_none():
  once = in_pixels(geometry.on_square(example(), WIDTH, HEIGHT, mirrored=True))
  assert same(in_pixels(geometry.on_square(once, WIDTH, HEIGHT, mirrored=True)), example())


@pytest.mark.parametrize(
  'box, expected',
  [
    ([-9, -9, 20.5, 15], [0, 5 / 41, 0.5, 20 / 41]),
    ([30, 20, 1e9, 1e9], [30 / 41, 25 / 41, 1, 35 / 41]),
    ([41, 0, 50, 9], None),
    ([-5, 0, 0, 9], None),
    ([5, 5, 5, 9], None),
    ([9, 5, 5, 9], None),
    ([1, 2, 3], None),
    (None, None),
    ('box', None),
    ([float('inf'), 0, 5, 5], None),
    ([0, 0, float('nan'), 5], None),
    ([0, 0, 'wide', 5], None),
    ([0, 0, 10**400, 5], None),
  ],
)
@pytest.mark.parametrize('mirrored', [False, True])
def test_boxes_are_cut_at_the_edge_or_dropped(box, expected, mirrored):
  dropped = collections.Counter()
  annotation = {'objects': [thing('cup', box)], 'phrases': [{'text': 'a cup', 'boxes': [box]}]}
  placed = geometry.on_square(
    annotation, WIDTH, HEIGHT, mirrored, lambda reason: dropped.update([reason])
  )
  if expected is None:
    assert (
      not placed['objects']
      and placed['phrases'] == [{'text': 'a cup', 'boxes': []}]
      and dropped.total() == 2
    )
    assert placed['partial'] == ['cup']  # The image shows one that is not in the list.
  else:
    x1, y1, x2, y2 = expected
    assert placed['objects'][0]['box'] == pytest.approx(
      [1 - x2, y1, 1 - x1, y2] if mirrored else expected
    )
    assert not dropped and 'partial' not in placed


@pytest.mark.parametrize(
  'point', [[-1, 5, 2], [5, 31, 2], [float('nan'), 5, 1], ['x', 5, 2], [5, 5], None]
)
def test_keypoints_outside_or_unreadable_are_dropped(point):
  reasons = []
  people = [{'box': [0, 0, 9, 9], 'keypoints': [[41, 30, 1], point, [-7, -7, 0]]}]
  placed = geometry.on_square({'people': people}, WIDTH, HEIGHT, drop=reasons.append)
  assert placed['people'][0]['keypoints'] == [[1, pytest.approx(35 / 41), 1], [0, 0, 0], [0, 0, 0]]
  assert len(reasons) == 1 and reasons[0].startswith('keypoint')


def test_relations_refer_to_the_remaining_objects():
  things = [thing('hat', [90, 0, 99, 9]), thing('cup', [0, 0, 9, 9]), thing('dog', [9, 9, 20, 20])]
  relations = [
    {'subject': 1, 'predicate': 'on', 'object': 2},
    {'subject': 0, 'predicate': 'on', 'object': 1},
    {'subject': 2, 'predicate': 'under', 'object': 0},
  ]
  placed = geometry.on_square({'objects': things, 'relations': relations}, WIDTH, HEIGHT)
  assert placed['relations'] == [{'subject': 0, 'predicate': 'on', 'object': 1}]


def test_a_scaled_annotation_is_at_the_same_places_of_a_scaled_image():
  annotation = example()
  twice = geometry.scaled(annotation, 2, 2)
  assert twice['objects'][0]['box'] == [2, 4, 22, 44] and twice['people'][0]['keypoints'][3] == [
    6,
    12,
    2,
  ]
  annotation['objects'][1]['box'] = [20, 0, 40, 30]
  assert same(
    geometry.on_square(geometry.scaled(annotation, 2, 2), 80, 60),
    geometry.on_square(annotation, 40, 30),
  )
  wrong = {
    'objects': [thing('cup', None), thing('cup', [1, 2, 3])],
    'people': [{'keypoints': [None, [1, 2]]}],
  }
  assert geometry.scaled(wrong, 2, 2) == {
    **wrong,
    'people': [{'box': None, 'keypoints': [None, [1, 2]]}],
  }


def test_random_values_never_raise():
  rng = np.random.default_rng(0)
  pool = [None, 'left', -1, 1e300, float('nan'), [], [1, 2, 3, 4], {}, True]
  for _ in range(300):

    def value():
      return pool[rng.integers(len(pool))]

    annotation = {
      'objects': [thing('cup', value()), thing('cup', [value() for _ in range(4)])],
      'people': [{'box': [1, 1, 9, 9], 'keypoints': [[value() for _ in range(3)], value()]}],
      'phrases': [{'text': 'a', 'boxes': [value(), [value() for _ in range(4)]]}],
      'caption': value(),
    }
    for mirrored in (False, True):
      placed = geometry.on_square(geometry.scaled(annotation, 2.0, 0.5), WIDTH, HEIGHT, mirrored)
      boxes = [item['box'] for item in placed['objects']] + placed['phrases'][0]['boxes']
      assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in boxes)
