import random

import numpy as np
import pytest

from sphinx_jax.core import coordinates


def test_official_text_forms():
  box = (0.25, 0.314, 0.5, 0.62)
  assert coordinates.format_box(box) == '[0.25, 0.31, 0.50, 0.62]'
  assert coordinates.format_boxes([box, box]) == '[0.25, 0.31, 0.50, 0.62; 0.25, 0.31, 0.50, 0.62]'
  assert coordinates.format_point((0.5, 0.25)) == '[0.50, 0.25]'
  assert (
    coordinates.format_phrase('red circle', [box]) == '<p>red circle</p>[0.25, 0.31, 0.50, 0.62]'
  )
  assert (
    coordinates.format_keypoints([('nose', (0.5, 0.2)), ('left eye', (0.4, 0.1))])
    == 'nose [0.50, 0.20], left eye [0.40, 0.10]'
  )


@pytest.mark.parametrize('decimals', [1, 2, 3])
def test_clips_to_the_largest_number_below_one(decimals):
  text = coordinates.format_box((-0.5, 0.0, 1.0, 0.99999), decimals)
  [(_, [box])] = coordinates.parse_groups(text)
  assert box == (0.0, 0.0, 1 - 10**-decimals, 1 - 10**-decimals)


@pytest.mark.parametrize('decimals', [2, 3])
def test_round_trip_is_exact_to_the_decimals(decimals):
  boxes = np.random.default_rng(0).uniform(0, 0.98, (50, 4))
  [(label, parsed)] = coordinates.parse_groups('cup ' + coordinates.format_boxes(boxes, decimals))
  assert label == 'cup'
  np.testing.assert_allclose(parsed, boxes, atol=0.5 * 10**-decimals + 1e-9)


def test_keypoint_names_survive_the_text():
  points = [(name, (0.1, 0.2)) for name in coordinates.KEYPOINTS]
  assert len(set(coordinates.KEYPOINTS)) == 17
  assert coordinates.parse_groups(coordinates.format_keypoints(points)) == [
    (name, [point]) for name, point in points
  ]


def test_labels_of_phrases_and_plain_names():
  text = (
    'a <p>red circle</p>[0.1, 0.2, 0.3, 0.4] and '
    'a <p>blue cup</p> [0.5, 0.6, 0.7, 0.8; 0, 0, 1, 1].'
  )
  assert coordinates.parse_groups(text) == [
    ('red circle', [(0.1, 0.2, 0.3, 0.4)]),
    ('blue cup', [(0.5, 0.6, 0.7, 0.8), (0.0, 0.0, 1.0, 1.0)]),
  ]
  assert coordinates.parse_groups(
    'nose [0.1, 0.2], left eye [0.3, 0.4] and Page-header [.5, 1.]'
  ) == [
    ('nose', [(0.1, 0.2)]),
    ('left eye', [(0.3, 0.4)]),
    ('Page-header', [(0.5, 1.0)]),
  ]
  assert coordinates.parse_groups('[0.1, 0.2]') == [('', [(0.1, 0.2)])]
  assert coordinates.parse_groups('<p>lost <p>cup</p>[0.1, 0.2]') == [('cup', [(0.1, 0.2)])]
  assert coordinates.parse_groups('an android [0.1, 0.2]') == [('an android', [(0.1, 0.2)])]


@pytest.mark.parametrize(
  'bad',
  [
    '[0.1, 0.2, 0.3]',
    '[a, b]',
    '[]',
    '[0.1, 0.2',
    '0.1, 0.2]',
    '[1e9, 2]',
    '[nan, inf]',
    f'[{"9" * 500}, 1]',
    '',
  ],
)
def test_malformed_groups_are_dropped(bad):
  assert coordinates.parse_groups('dog ' + bad) == []


def test_a_malformed_group_leaves_its_neighbours():
  text = 'cup [0.1, x], bag [0.1, 0.2; 0.1, 0.2, 0.3], hat [0.5, 0.6]'
  assert coordinates.parse_groups(text) == [('bag', [(0.1, 0.2)]), ('hat', [(0.5, 0.6)])]


def test_random_text_never_raises():
  rng = random.Random(0)
  for _ in range(2000):
    text = ''.join(rng.choices('[]<>p/;,. 0189-abc\n٣', k=rng.randrange(60)))
    for label, groups in coordinates.parse_groups(text):
      assert isinstance(label, str)
      for numbers in groups:
        assert len(numbers) in (2, 4) and np.isfinite(numbers).all()
