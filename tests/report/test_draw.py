import numpy as np
import pytest

from sphinx_jax.core import coordinates
from sphinx_jax.report import draw

GREY = 200


def drawn(width, height, answer, asked='', scale=4):
  image = np.full((height, width, 3), GREY, np.uint8)
  return np.asarray(draw.draw(image, answer, asked, scale=scale)).astype(int)


def touched(pixels):
  """Bounding box (x1, y1, x2, y2) of what differs from the empty picture."""
  ys, xs = np.nonzero((pixels != GREY).any(-1))
  return xs.min(), ys.min(), xs.max(), ys.max()


@pytest.mark.parametrize('width, height', [(64, 64), (96, 64), (64, 96), (33, 64)])
def test_a_box_is_drawn_where_it_is_on_the_original_picture(width, height):
  wanted = np.array([8, 16, 24, 40])
  side, left, top = (
    max(width, height),
    (max(width, height) - width) // 2,
    (max(width, height) - height) // 2,
  )
  square = (wanted + [left, top, left, top]) / side
  text = '[' + ', '.join(f'{number:.6f}' for number in square) + ']'
  assert np.abs(np.array(touched(drawn(width, height, text))) - wanted * 4).max() <= 2


def test_a_point_is_drawn_where_it_is():
  x1, y1, x2, y2 = touched(drawn(96, 64, 'nose [0.5, 0.5]'))
  assert abs((x1 + x2) / 2 - 48 * 4) <= 2 and abs((y1 + y2) / 2 - 32 * 4) <= 2


def test_labels_are_drawn_in_their_own_colour_inside_the_picture():
  plain, labelled = (
    drawn(64, 64, '[0.5, 0.5, 0.9, 0.9]'),
    drawn(64, 64, '<p>Title</p>[0.5, 0.5, 0.9, 0.9]'),
  )
  assert (labelled != plain).any()
  red = tuple(int(draw.LAYOUT['Title'][i : i + 2], 16) for i in (1, 3, 5))
  assert (labelled == red).all(-1).sum() > 100
  corner = drawn(64, 64, 'a very long label [0.9, 0.0, 0.99, 0.1]')
  assert (corner != GREY).any() and corner.shape == (256, 256, 3)


def test_the_skeleton_joins_keypoints_of_one_person_only():
  left, right = ('left shoulder', (0.2, 0.5)), ('right shoulder', (0.8, 0.5))
  middle = (slice(124, 133), 128)
  one = drawn(64, 64, coordinates.format_keypoints([left, right]))
  assert (one[middle] != GREY).any()
  two_people = drawn(
    64,
    64,
    coordinates.format_keypoints([left, ('left shoulder', (0.3, 0.2)), ('nose', (0.8, 0.5))]),
  )
  assert (two_people[middle] == GREY).all()


def test_the_box_of_the_next_person_ends_the_one_before():
  people = (
    'person [0.1, 0.4, 0.3, 0.6]: left shoulder [0.2, 0.5]\n'
    'person [0.7, 0.4, 0.9, 0.6]: nose [0.8, 0.45], right shoulder [0.8, 0.5]'
  )
  pixels = drawn(64, 64, people)
  assert (pixels[124:133, 100:160] == GREY).all()  # No limb from one to the other.
  assert (pixels[128, 51] != GREY).any() and (pixels[128, 205] != GREY).any()


def test_boxes_of_the_question_are_drawn_too():
  assert touched(drawn(64, 64, 'a cup', asked='What is in [0.25, 0.25, 0.75, 0.75]?'))[
    0
  ] == pytest.approx(64, abs=2)


@pytest.mark.parametrize(
  'answer',
  [
    '',
    'None',
    'a red circle',
    '[0.1, 0.2',
    '[a, b, c, d]',
    '[0.9, 0.9, 0.1, 0.1]',
    '[5, 5, 9, 9] x [[',
    '<p>',
  ],
)
def test_any_answer_can_be_drawn(answer):
  assert drawn(20, 30, answer).shape == (120, 80, 3)


def test_what_can_be_drawn():
  assert draw.is_drawable('the cup [0.1, 0.1, 0.2, 0.2]') and not draw.is_drawable('red [soon]')


def test_small_pictures_are_enlarged_and_large_ones_kept():
  assert draw.draw(np.zeros((64, 64, 3), np.uint8), '').size == (320, 320)
  assert draw.draw(np.zeros((500, 700, 3), np.uint8), '').size == (700, 500)
