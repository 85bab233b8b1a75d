import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import embeddings


def drawn(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_alignment_repeats_cells_and_pooling_undoes_it():
  feature_map = drawn(2, 3, 3, 4)
  aligned = np.asarray(embeddings.align(feature_map, 6))
  for i in range(6):
    for j in range(6):
      np.testing.assert_array_equal(aligned[:, i, j], feature_map[:, i // 2, j // 2])
  np.testing.assert_allclose(embeddings.pool(aligned, 2), feature_map, atol=1e-6)
  np.testing.assert_allclose(aligned.mean(axis=(1, 2)), feature_map.mean(axis=(1, 2)), atol=1e-6)
  np.testing.assert_array_equal(embeddings.align(feature_map, 3), feature_map)


def test_pooling_averages_two_by_two():
  feature_map = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(
    np.asarray(embeddings.pool(feature_map, 2))[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]]
  )
  np.testing.assert_array_equal(embeddings.pool(feature_map, 1), feature_map)


def test_channels_stand_in_the_order_given_with_the_class_token_first():
  encoded = [
    (drawn(2, 3, seed=1), drawn(2, 4, 4, 3, seed=2)),
    (drawn(2, 5, seed=3), drawn(2, 4, 4, 5, seed=4)),
  ]
  mixed = np.asarray(embeddings.channel_mix(encoded))
  assert mixed.shape == (2, 17, 8)
  np.testing.assert_array_equal(
    mixed[:, 0], np.concatenate([encoded[0][0], encoded[1][0]], axis=-1)
  )
  np.testing.assert_array_equal(mixed[:, 1 + 4 * 2 + 1, 3:], encoded[1][1][:, 2, 1])


def test_query_tokens_come_before_the_mixed_ones():
  queries, mixed = drawn(2, 3, 4), drawn(2, 5, 4, seed=1)
  joined = np.asarray(embeddings.sequence_mix(queries, mixed))
  np.testing.assert_array_equal(joined[:, :3], queries)
  np.testing.assert_array_equal(joined[:, 3:], mixed)
  assert embeddings.sequence_mix(None, mixed) is mixed


def test_feature_maps_that_do_not_divide_are_refused():
  with pytest.raises(errors.SphinxError, match='feature maps of 3x3 and 4x4'):
    embeddings.align(drawn(1, 3, 3, 2), 4)
  with pytest.raises(errors.SphinxError, match='a feature map of 3x3'):
    embeddings.pool(drawn(1, 3, 3, 2), 2)
