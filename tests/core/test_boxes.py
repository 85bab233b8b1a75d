import numpy as np
import pytest

from sphinx_jax.core import boxes


@pytest.mark.parametrize('width,height', [(640, 427), (333, 500), (7, 7), (1, 10)])
def test_padding_and_back(width, height):
  box = (0.2 * width, 0.1 * height, 0.9 * width, height)
  padded = boxes.pad_box(box, width, height)
  assert 0 <= min(padded) and max(padded) <= 1
  np.testing.assert_allclose(boxes.unpad_box(padded, width, height), box, atol=1e-9)


def test_padding_is_floored_on_the_left_and_top():
  assert boxes.pad_box((0, 0, 1, 10), 1, 10) == (0.4, 0.0, 0.5, 1.0)
  assert boxes.pad_box((0, 0, 10, 1), 10, 1) == (0.0, 0.4, 1.0, 0.5)


def test_iou():
  unit = (0.0, 0.0, 1.0, 1.0)
  assert boxes.iou(unit, unit) == 1.0
  assert boxes.iou(unit, (0.0, 0.0, 0.5, 1.0)) == 0.5
  assert boxes.iou(unit, (1.0, 0.0, 2.0, 1.0)) == 0.0  # touching edges share nothing
  assert boxes.iou((1.0, 1.0, 0.0, 0.0), unit) == 0.0  # inverted
  assert boxes.iou((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)) == 0.0  # empty


def test_match_is_one_to_one_and_takes_the_best_overlap():
  a, near_a, b = (0, 0, 0.4, 0.4), (0, 0, 0.4, 0.3), (0.5, 0.5, 0.9, 0.9)
  assert boxes.match([a, b], [b, a]) == 2
  assert boxes.match([a, near_a, a], [a]) == 1
  assert boxes.match([near_a, a], [a, near_a], threshold=0.99) == 2
  assert boxes.match([], [a]) == boxes.match([a], []) == 0


def test_match_with_labels_needs_equal_labels():
  a, b = (0, 0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)
  assert (
    boxes.match([a, b], [a, b], predicted_labels=['cup', 'hat'], truth_labels=['cup', 'dog']) == 1
  )
