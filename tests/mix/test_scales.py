import pathlib

import jax
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import scales

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
PLAIN = np.load(GOLDEN / 'interpolate.npz')  # torch's F.interpolate.
HALF_SIZES = ((512, 224), (1024, 224), (1024, 448), (448, 224), (224, 331), (37, 51), (7, 300))


def noise(size):
  """float32[size,size] in [-2, 2), the same everywhere."""
  numbers = np.arange(size * size, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
  return (numbers.astype(np.float64) / 2**30 - 2).astype(np.float32).reshape(size, size)


def test_every_row_of_a_matrix_sums_to_one():
  for method in ('bicubic', 'nearest'):
    for sizes in ((7, 16), (16, 7), (64, 32)):
      np.testing.assert_allclose(
        scales.resize_matrix(*sizes, method=method).sum(axis=1), 1, atol=1e-6
      )


def test_bicubic_halving_has_the_known_weights():
  np.testing.assert_allclose(
    scales.resize_matrix(8, 4)[1, 1:5], [-0.09375, 0.59375, 0.59375, -0.09375], atol=1e-7
  )


def test_nearest_takes_the_floor_of_the_scaled_index():
  matrix = scales.resize_matrix(224, 256, method='nearest')
  np.testing.assert_array_equal(matrix.argmax(axis=1), np.arange(256) * 224 // 256)
  np.testing.assert_array_equal(matrix.max(axis=1), 1)


@pytest.mark.parametrize('size', [7, 8, 24])
def test_resizing_is_that_of_the_official_code(size):
  image = PLAIN['image']
  np.testing.assert_allclose(scales.resize(image, size), PLAIN[f'bicubic_{size}'], atol=2e-6)
  np.testing.assert_array_equal(
    scales.resize(image, size, method='nearest'), PLAIN[f'nearest_{size}']
  )
  np.testing.assert_array_equal(
    scales.resize(image, size, half_round=True), PLAIN[f'bicubic_half_{size}']
  )


@pytest.mark.parametrize('sizes', HALF_SIZES)
def test_half_rounding_is_that_of_the_official_code_to_the_bit(sizes):
  """The golden values are of torch 2.13's F.interpolate(noise(a).half(), (b, b), mode='bicubic').

  They were computed on a CPU. The file has up to 300 pixels that exact sums, or rounded sums in
  another order, get wrong, and 200 other pixels.
  """
  golden, (size, to) = np.load(GOLDEN / 'interpolate_half.npz'), sizes
  image = noise(size)[None, :, :, None]
  for resize in (scales.resize, jax.jit(scales.resize, static_argnames=('size', 'half_round'))):
    half = np.asarray(resize(image, size=to, half_round=True)).reshape(-1)
    np.testing.assert_array_equal(half[golden[f'index_{size}_{to}']], golden[f'value_{size}_{to}'])


def test_half_rounding_is_that_of_float16():
  ties = np.float32([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, 5e-6, 6.1e-5, 7e4, 0]).reshape(
    1, 2, 2, 2
  )
  with np.errstate(over='ignore'):
    want = ties.astype(np.float16)
  np.testing.assert_array_equal(jax.jit(lambda x: scales.resize(x, 2, half_round=True))(ties), want)


def test_a_scale_of_its_own_moves_the_sampling_points():
  plain, shifted = scales.resize_matrix(37, 16), scales.resize_matrix(37, 16, scale=16.1 / 37)
  centers = lambda matrix: matrix @ np.arange(37)
  step = np.diff(centers(shifted)[2:-2]).mean()
  np.testing.assert_allclose(step, 37 / 16.1, atol=0.02)
  assert np.abs(plain - shifted).max() > 0.05


def test_a_constant_image_gives_equal_views():
  views = np.asarray(scales.views(np.full((2, 12, 12, 3), 0.7, np.float32), grid=3, view=5))
  assert views.shape == (2, 10, 5, 5, 3)
  np.testing.assert_allclose(views, 0.7, atol=1e-6)


def test_sub_images_lie_row_by_row_and_an_image_of_the_size_is_cut_as_it_is():
  image = np.arange(36, dtype=np.float32).reshape(1, 6, 6, 1) / 7
  for half_round in (False, True):
    views = np.asarray(scales.views(image, grid=3, view=2, half_round=half_round))
    for i in range(9):
      top, left = 2 * (i // 3), 2 * (i % 3)
      np.testing.assert_array_equal(views[0, 1 + i], image[0, top : top + 2, left : left + 2])


def test_sub_images_of_a_smaller_image_come_from_its_enlargement():
  image = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
  views = scales.views(image, grid=2, view=4)
  np.testing.assert_array_equal(views[:, 0], scales.resize(image, 4))
  np.testing.assert_array_equal(views[:, 2], scales.resize(image, 8)[:, :4, 4:])


def test_one_view_is_the_image_itself():
  image = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  np.testing.assert_array_equal(scales.views(image, grid=1, view=6, half_round=True)[:, 0], image)


def test_an_unknown_method_is_refused():
  with pytest.raises(errors.SphinxError, match="did you mean 'bicubic'"):
    scales.resize_matrix(4, 8, method='bicubik')


def test_scales_are_left_out_at_an_equal_number_of_views():
  image = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
  both = scales.views(image, grid=2, view=2)
  whole = scales.views(image, grid=2, view=2, shown='global')
  parts = scales.views(image, grid=2, view=2, shown='sub')
  np.testing.assert_array_equal(whole, np.repeat(both[:, :1], 5, axis=1))
  np.testing.assert_array_equal(parts[:, 1:], both[:, 1:])
  assert not parts[:, 0].any()
