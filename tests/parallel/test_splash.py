"""Splash attention compared with plain attention, in Pallas' interpreter instead of on a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.models import attention
from sphinx_jax.parallel import mesh as meshes, splash

BATCH_SIZE, LENGTH, WIDTH = 2, 256, 128


def inputs(heads, kv_heads):
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = [
    jax.random.normal(key, (BATCH_SIZE, LENGTH, count, WIDTH))
    for key, count in zip(keys, (heads, kv_heads, kv_heads))
  ]
  segments = np.random.default_rng(0).integers(1, 5, (BATCH_SIZE, LENGTH), dtype=np.int32)
  segments.sort(axis=1)
  segments[:, -40:] = 0  # Padding.
  return *arrays, segments


def output_and_gradients(attend, query, key, value, segments):
  """The output, and the gradients of a sum that weights every valid position differently."""
  weight = np.linspace(0.5, 1.5, LENGTH)[:, None, None] * (segments > 0)[:, :, None, None]

  def total(query, key, value):
    out = attend(query, key, value, segments)
    return (out * weight).sum(), out

  gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
  return out * (segments > 0)[:, :, None, None], gradients


@pytest.mark.parametrize('heads, kv_heads', [(2, 2), (4, 2)])
def test_outputs_and_gradients_equal_those_of_plain_attention(heads, kv_heads):
  arguments = inputs(heads, kv_heads)
  plain = functools.partial(output_and_gradients, attention.xla_attention)
  kernel = functools.partial(splash.splash_attention, interpret=True)
  blockwise = functools.partial(output_and_gradients, kernel)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max())),
    jax.jit(blockwise)(*arguments),
    jax.jit(plain)(*arguments),
  )


def test_with_segments_of_keys_all_of_a_segment_is_seen():
  """On one device and on several, each of which computes its own queries; heads of 72 channels."""
  query, key, value, segments = inputs(2, 2)
  query, key, value = (x[..., :72] for x in (query, key, value))

  def run(attend):
    both = lambda *x: attend(*x, key_segments=x[3])
    return jax.jit(functools.partial(output_and_gradients, both))(query, key, value, segments)

  mesh = meshes.make_mesh(data=1, fsdp=2, tensor=2)
  interpreted = functools.partial(splash.splash_attention, interpret=True)
  want, got = run(attention.xla_attention), run(interpreted)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    sharding = jax.sharding.NamedSharding(mesh, jax.P(('data', 'fsdp')))
    placed = [jax.device_put(x, sharding) for x in (query, key, value, segments)]
    split = jax.jit(lambda *x: interpreted(*x, key_segments=x[3]))(*placed)
  assert split.sharding.spec[1] == 'tensor'
  is_valid = (segments > 0)[..., None, None]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5),
    (*got, split * is_valid),
    (*want, want[0]),
  )


def test_every_device_computes_its_own_rows_and_heads():
  query, key, value, segments = inputs(4, 2)
  mesh = meshes.make_mesh(data=1, fsdp=2, tensor=2)
  attend = functools.partial(splash.splash_attention, interpret=True)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    sharding = jax.sharding.NamedSharding(mesh, jax.P(('data', 'fsdp'), None, 'tensor'))
    placed = [jax.device_put(x, sharding) for x in (query, key, value)]
    compiled = jax.jit(attend).lower(*placed, segments).compile()
  assert 'all-gather' not in compiled.as_text()
  np.testing.assert_allclose(
    compiled(*placed, segments), attention.xla_attention(query, key, value, segments), atol=2e-5
  )


def test_shapes_that_the_kernel_does_not_support_are_refused_or_computed_plainly():
  query = jnp.ones((1, 96, 2, 64))
  segments = jnp.ones((1, 96), jnp.int32)
  with pytest.raises(
    errors.SphinxError, match='96 positions and heads of 64, expected multiples of 128'
  ):
    splash.splash_attention(query, query, query, segments)
  np.testing.assert_array_equal(
    attention.attend(query, query, query, segments=segments, kernel='auto'),
    attention.xla_attention(query, query, query, segments),
  )
