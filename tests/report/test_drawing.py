import time

import numpy as np
import pytest

from sphinx_jax.core import coordinates
from sphinx_jax.report import drawing
from tests.report import texts

GRAY = 200


def drawn(width, height, answer, asked='', scale=4):
  image = np.full((height, width, 3), GRAY, np.uint8)
  return np.asarray(drawing.draw_answer(image, answer, asked, scale=scale)).astype(int)


def drawn_bounds(pixels):
  """The bounding box (x1, y1, x2, y2) of the pixels that differ from the empty image."""
  ys, xs = np.nonzero((pixels != GRAY).any(-1))
  return xs.min(), ys.min(), xs.max(), ys.max()


@pytest.mark.parametrize('width, height', [(64, 64), (96, 64), (64, 96), (33, 64)])
def test_a_box_is_drawn_at_its_place_on_the_original_image(width, height):
  wanted = np.array([8, 16, 24, 40])
  side, left, top = (
    max(width, height),
    (max(width, height) - width) // 2,
    (max(width, height) - height) // 2,
  )
  square = (wanted + [left, top, left, top]) / side
  text = '[' + ', '.join(f'{number:.6f}' for number in square) + ']'
  assert np.abs(np.array(drawn_bounds(drawn(width, height, text))) - wanted * 4).max() <= 2


def test_a_point_is_drawn_at_its_place():
  x1, y1, x2, y2 = drawn_bounds(drawn(96, 64, 'nose [0.5, 0.5]'))
  assert abs((x1 + x2) / 2 - 48 * 4) <= 2 and abs((y1 + y2) / 2 - 32 * 4) <= 2


def test_labels_are_drawn_in_their_own_color_inside_the_image():
  plain, labelled = (
    drawn(64, 64, '[0.5, 0.5, 0.9, 0.9]'),
    drawn(64, 64, '<p>Title</p>[0.5, 0.5, 0.9, 0.9]'),
  )
  assert (labelled != plain).any()
  red = tuple(int(drawing.LAYOUT_COLORS['Title'][i : i + 2], 16) for i in (1, 3, 5))
  assert (labelled == red).all(-1).sum() > 100
  corner = drawn(64, 64, 'a very long label [0.9, 0.0, 0.99, 0.1]')
  assert (corner != GRAY).any() and corner.shape == (256, 256, 3)


def test_limbs_connect_keypoints_of_one_person_only():
  left, right = ('left shoulder', (0.2, 0.5)), ('right shoulder', (0.8, 0.5))
  middle = (slice(124, 133), 128)
  one = drawn(64, 64, coordinates.format_keypoints([left, right]))
  assert (one[middle] != GRAY).any()
  two_people = drawn(
    64,
    64,
    coordinates.format_keypoints([left, ('left shoulder', (0.3, 0.2)), ('nose', (0.8, 0.5))]),
  )
  assert (two_people[middle] == GRAY).all()


def test_the_box_of_the_next_person_ends_the_previous_one():
  people = (
    'person [0.1, 0.4, 0.3, 0.6]: left shoulder [0.2, 0.5]\n'
    'person [0.7, 0.4, 0.9, 0.6]: nose [0.8, 0.45], right shoulder [0.8, 0.5]'
  )
  pixels = drawn(64, 64, people)
  assert (pixels[124:133, 100:160] == GRAY).all()  # No limb from one to the other.
  assert (pixels[128, 51] != GRAY).any() and (pixels[128, 205] != GRAY).any()


def test_boxes_of_the_question_are_drawn():
  assert drawn_bounds(drawn(64, 64, 'a cup', asked='What is in [0.25, 0.25, 0.75, 0.75]?'))[
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


def test_only_boxes_and_points_are_drawable():
  assert drawing.is_drawable('the cup [0.1, 0.1, 0.2, 0.2]') and not drawing.is_drawable(
    'red [soon]'
  )


def test_small_images_are_enlarged_and_large_ones_keep_their_size():
  assert drawing.draw_answer(np.zeros((64, 64, 3), np.uint8), '').size == (320, 320)
  assert drawing.draw_answer(np.zeros((500, 700, 3), np.uint8), '').size == (700, 500)


@pytest.mark.parametrize('text', texts.HOSTILE.values(), ids=list(texts.HOSTILE))
def test_any_text_is_drawn(text):
  for answer in (
    text,
    f'{text}[0.1, 0.2, 0.5, 0.6]',
    f'<p>{text}</p>[0.1, 0.2, 0.5, 0.6; 0.3, 0.4]',
  ):
    pixels = drawn(64, 48, answer, asked=f'{text} [0.2, 0.2, 0.4, 0.4]')
    assert (pixels != GRAY).any() and pixels.shape == (192, 256, 3)


def test_coordinates_far_outside_the_image_are_drawn_in_no_time():
  begin = time.perf_counter()
  drawn(64, 64, 'a [-9999, -9999, 9999, 9999], b [0.5, 9999.5], nose [9999, -9999], c [1, 1, 0, 0]')
  drawn(1, 3000, 'a [-9999, -9999, 9999, 9999], b [167, 125, 667, 750]')
  drawn(64, 64, '<p>' * 20_000 + '[0.1, 0.1, 0.2, 0.2]')
  assert time.perf_counter() - begin < 10
