import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.models import attention

attend = jax.jit(attention.attend)


def plain(query, key, value, mask):
  """Attention written out in float64, head by head."""
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  repeat = query.shape[2] // key.shape[2]
  out = np.zeros(query.shape)
  for b in range(query.shape[0]):
    for h in range(query.shape[2]):
      scores = query[b, :, h] @ key[b, :, h // repeat].T / query.shape[-1] ** 0.5
      scores[~mask[b]] = -np.inf
      weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
      out[b, :, h] = weights / weights.sum(axis=-1, keepdims=True) @ value[b, :, h // repeat]
  return out


def arrays(length, slots, kv_heads=2):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = ((2, length, 4, 8), (2, slots, kv_heads, 8), (2, slots, kv_heads, 8))
  return [3 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]


@pytest.mark.parametrize('length', [20, 150])  # One block of queries, and blocks of unequal length.
def test_packed_rows_see_their_own_past(length):
  segments = np.sort(np.random.default_rng(0).integers(0, 4, (2, length)), axis=1).astype(np.int32)
  mask = (segments[:, :, None] == segments[:, None]) & np.tri(length, dtype=bool)
  query, key, value = arrays(length, length)
  np.testing.assert_allclose(
    attend(query, key, value, segments=segments), plain(query, key, value, mask), atol=2e-5
  )


def test_gradient_through_blocks_is_that_of_one_block(monkeypatch):
  segments = jnp.ones((2, 150), jnp.int32)

  def gradient():
    loss = lambda *x: jnp.square(attention.attend(*x, segments=segments)).mean()
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays(150, 150))

  blocks = gradient()
  monkeypatch.setattr(attention, '_MAX_BLOCKS', 1)
  for a, b in zip(blocks, gradient()):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_cache_is_seen_up_to_the_position():
  positions = np.array([[4, 5, 6], [0, 1, 2]], np.int32)
  mask = positions[:, :, None] >= np.arange(10)
  query, key, value = arrays(3, 10, kv_heads=1)
  np.testing.assert_allclose(
    attend(query, key, value, positions=positions), plain(query, key, value, mask), atol=2e-5
  )


def test_without_either_every_key_is_seen():
  query, key, value = arrays(5, 9, kv_heads=4)
  np.testing.assert_allclose(
    attend(query, key, value), plain(query, key, value, np.ones((2, 5, 9), bool)), atol=2e-5
  )


@pytest.mark.parametrize('mask', [False, True])
def test_the_patches_of_a_large_image_are_computed_in_blocks(mask, monkeypatch):
  """Of unequal length, forward and backward, of several images and of one."""
  query, key, value = arrays(50, 50)
  segments = jnp.array([[1] * 31 + [2] * 19, [1] * 50]) if mask else None
  visible = np.ones((2, 50, 50), bool)
  if mask:
    visible = np.asarray(segments[:, :, None] == segments[:, None])

  def run(*arrays):
    def loss(*arrays):
      out = attention.attend(*arrays, segments=segments, key_segments=segments)
      return jnp.square(out).mean(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)

  whole, out = run(query, key, value)
  np.testing.assert_allclose(out, plain(query, key, value, visible), atol=2e-5)
  monkeypatch.setattr(attention, '_MOST_QUERIES', 20)
  blocks, out = run(query, key, value)
  np.testing.assert_allclose(out, plain(query, key, value, visible), atol=2e-5)
  for a, b in zip(blocks, whole):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_with_segments_of_keys_all_of_a_segment_is_seen():
  rng = np.random.default_rng(0)
  segments, key_segments = (rng.integers(1, 4, (2, n)).astype(np.int32) for n in (20, 90))
  query, key, value = arrays(20, 90)
  np.testing.assert_allclose(
    attend(query, key, value, segments=segments, key_segments=key_segments),
    plain(query, key, value, segments[:, :, None] == key_segments[:, None]),
    atol=2e-5,
  )


def test_bfloat16_keeps_its_softmax_in_float32():
  query, key, value = (x.astype(jnp.bfloat16) for x in arrays(100, 100))
  out = attend(query, key, value, segments=jnp.ones((2, 100), jnp.int32))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    out.astype(np.float32),
    plain(query, key, value, np.tri(100, dtype=bool)[None].repeat(2, 0)),
    atol=0.05,
  )


def test_wrong_use_is_refused():
  query, key, value = arrays(3, 3)
  ones = jnp.ones((2, 3), jnp.int32)
  with pytest.raises(errors.SphinxError, match='at most one'):
    attention.attend(query, key, value, segments=ones, positions=ones)
  with pytest.raises(errors.SphinxError, match='4 heads over 3'):
    attention.attend(query, jnp.ones((2, 3, 3, 8)), jnp.ones((2, 3, 3, 8)))
  with pytest.raises(errors.SphinxError, match="attention kernel: got 'flash'"):
    attention.attend(query, key, value, kernel='flash')


def packed(length=128):
  segments = jnp.asarray(
    np.sort(np.random.default_rng(0).integers(0, 4, (2, length)), axis=1), jnp.int32
  )
  return [x.astype(jnp.bfloat16) for x in arrays(length, length)], segments


def assert_close(actual, expected):
  """Equal up to the last place of bfloat16."""
  np.testing.assert_allclose(
    np.asarray(actual, np.float32), np.asarray(expected, np.float32), rtol=1e-2, atol=0.05
  )


def test_the_call_of_cudnn_computes_what_plain_products_do(monkeypatch):
  """Tests the arguments alone: jax's XLA implementation replaces cuDNN, which needs a GPU."""
  real, implementations = jax.nn.dot_product_attention, []

  def with_xla(*args, implementation, **options):
    implementations.append(implementation)
    return real(*args, implementation='xla', **options)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', with_xla)
  (query, key, value), segments = packed()
  out = attention.attend(query, key, value, segments=segments, kernel='cudnn')
  assert_close(out, attention.attend(query, key, value, segments=segments))
  assert implementations == ['cudnn']
  with pytest.raises(errors.SphinxError, match='got float32, expected bfloat16 or float16'):
    attention.attend(*arrays(128, 128), segments=segments, kernel='cudnn')


@pytest.mark.gpu
def test_cudnn_computes_what_plain_products_do():
  arguments, segments = packed()

  @functools.partial(jax.jit, static_argnames='kernel')
  def attend_with_gradient(arguments, kernel):
    def loss(arguments):
      out = attention.attend(*arguments, segments=segments, kernel=kernel)
      return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    return jax.grad(loss, has_aux=True)(arguments)

  actual, expected = (attend_with_gradient(arguments, kernel=kernel) for kernel in ('cudnn', 'xla'))
  jax.tree.map(assert_close, actual, expected)
  text = attend_with_gradient.lower(arguments, kernel='cudnn').compile().as_text()
  assert '__cudnn$fmhaScaleBiasSoftmax' in text and 'SoftmaxBackward' in text
