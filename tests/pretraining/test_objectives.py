"""The losses of pretraining against small cases that are computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.pretraining import contrast, distill, objective


def test_the_contrast_of_known_cosines():
  images = jnp.eye(2)
  texts = jnp.array([[0.8, 0.6], [0.0, 1.0]])
  # Cosines times 10: [[8, 0], [6, 10]]. Rows choose a text, columns choose an image.
  loss, is_nearest = contrast.contrast(images, texts, jnp.float32(10))
  to_text = [np.log1p(np.exp(-8)), np.log1p(np.exp(-4))]
  to_image = [np.log1p(np.exp(-2)), np.log1p(np.exp(-10))]
  np.testing.assert_allclose(loss, np.add(to_text, to_image) / 2, atol=1e-6)
  assert is_nearest.tolist() == [True, True]
  _, swapped = contrast.contrast(images, texts[::-1], jnp.float32(10))
  assert swapped.tolist() == [False, False]


def test_a_teacher_is_centered_and_sharpened():
  scores, center = jnp.array([0.04, 0.08]), jnp.array([0.0, 0.04])
  np.testing.assert_allclose(distill.teach(scores, center), [0.5, 0.5], rtol=1e-6)
  # Without the center the second prototype would win: exp(0.04 / 0.04) = e times as likely.
  np.testing.assert_allclose(distill.teach(scores, 0 * center)[1], np.e / (1 + np.e), rtol=1e-6)


def test_a_running_mean_keeps_the_share_of_its_momentum():
  np.testing.assert_allclose(distill.move(jnp.array([1.0, 2.0]), jnp.zeros(2), 0.9), [0.9, 1.8])


def test_no_crop_is_compared_with_itself():
  # The teacher is sure of prototype 0. The student agrees on the large crops 0 and 1, and is
  # undecided about the small crop 2.
  sure = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
  scores = jnp.array([[[9.0, 0.0], [9.0, 0.0], [0.0, 0.0]]])
  undecided = np.log(2)
  # Pairs (0, 1), (1, 0), (0, 2), (1, 2).
  np.testing.assert_allclose(distill.of_classes(sure, scores), [undecided / 2], rtol=1e-5)
  other = scores.at[0, 0].set(jnp.array([0.0, 0.0]))
  np.testing.assert_allclose(distill.of_classes(sure, other), [3 * undecided / 4], rtol=1e-5)


def test_only_hidden_cells_count():
  target = jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 2, 1, 2, 2))
  scores = jnp.zeros((1, 2, 1, 2, 2)).at[0, 0, 0, 0].set(jnp.array([-50.0, 50.0]))
  hidden = jnp.array([[[[False, True]], [[False, True]]]])
  np.testing.assert_allclose(distill.of_cells(target, scores, hidden), [np.log(2)], rtol=1e-6)
  assert distill.of_cells(target, scores, ~hidden) > 100
  assert distill.of_cells(target, scores, hidden & False) == 0


def test_a_crop_of_the_whole_edge_is_the_image():
  images = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3)), jnp.float32)
  whole = distill.crop(images, jax.random.key(0), (1.0, 1.0), 2, 8)
  np.testing.assert_allclose(whole, jnp.stack([images, images], axis=1), atol=1e-6)


def test_crops_are_parts_of_their_image():
  """An image whose channels are the place of a pixel shows where a crop is from."""
  at = (np.arange(32) + 0.5) / 32
  image = np.stack([*np.meshgrid(at, at, indexing='ij'), np.zeros((32, 32))], axis=-1)
  crops = distill.crop(jnp.asarray(image[None], jnp.float32), jax.random.key(1), (0.25, 0.5), 5, 8)
  low, high = crops.min(axis=(2, 3))[0, :, :2], crops.max(axis=(2, 3))[0, :, :2]
  edges = (high - low) * 8 / 7  # Between the centers of the first and the last pixel.
  assert (edges > 0.2).all() and (edges < 0.55).all()
  np.testing.assert_allclose(edges[:, 0], edges[:, 1], atol=0.05)
  assert np.unique(np.round(low, 2), axis=0).shape[0] > 1


def test_hidden_cells_are_gray_for_the_student_alone():
  images = jnp.ones((3, 16, 16, 3))
  seen = distill.views(images, jax.random.key(0), size=8, side=4, small=2, hidden=0.5)
  assert seen.whole.shape == (3, 2, 8, 8, 3) and seen.small.shape == (3, 2, 8, 8, 3)
  cells = seen.masked.reshape(3, 2, 4, 2, 4, 2, 3).mean(axis=(3, 5, 6))
  np.testing.assert_allclose(cells, 1 - seen.hidden, atol=1e-6)
  assert 0.2 < seen.hidden.mean() < 0.8 and (seen.whole > 0.99).all()


@pytest.mark.parametrize(
  'length, expected', [(4, [[7, 8, 2, 0], [9, 2, 0, 0]]), (2, [[7, 8], [9, 2]])]
)
def test_captions_are_cut_out_of_their_dialogs(length, expected):
  batch = {
    'targets': jnp.array([[5, 6, 7, 8, 2, 0], [5, 9, 2, 0, 0, 0]]),
    'loss_weight': jnp.array([[0, 0, 0.3, 0.3, 0.3, 0], [0, 0.5, 0.5, 0, 0, 0]]),
  }
  tokens, is_token = objective.answers(batch, length)
  assert tokens.tolist() == expected
  assert is_token.tolist() == (np.array(expected) > 0).tolist()
