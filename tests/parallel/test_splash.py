"""Splash attention beside the plain one; Pallas' interpreter stands for the TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.models import attention
from sphinx_jax.parallel import mesh as meshes, splash

ROWS, LENGTH, WIDTH = 2, 256, 128


def inputs(heads, kv_heads):
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = [
    jax.random.normal(key, (ROWS, LENGTH, count, WIDTH))
    for key, count in zip(keys, (heads, kv_heads, kv_heads))
  ]
  segments = np.sort(np.random.default_rng(0).integers(1, 5, (ROWS, LENGTH)), axis=1).astype(
    np.int32
  )
  segments[:, -40:] = 0  # Padding.
  return *arrays, segments


def both(attend, query, key, value, segments):
  """Output, and gradients of a sum that weighs every real position differently."""
  weight = np.linspace(0.5, 1.5, LENGTH)[:, None, None] * (segments > 0)[:, :, None, None]

  def total(query, key, value):
    out = attend(query, key, value, segments)
    return (out * weight).sum(), out

  gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
  return out * (segments > 0)[:, :, None, None], gradients


@pytest.mark.parametrize('heads, kv_heads', [(2, 2), (4, 2)])
def test_outputs_and_gradients_are_those_of_plain_attention(heads, kv_heads):
  arguments = inputs(heads, kv_heads)
  want = jax.jit(functools.partial(both, attention.xla_attention))(*arguments)
  found = jax.jit(
    functools.partial(both, functools.partial(splash.splash_attention, interpret=True))
  )(*arguments)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max())), found, want
  )


def test_every_device_takes_its_own_rows_and_heads():
  query, key, value, segments = inputs(4, 2)
  mesh = meshes.make_mesh(data=1, fsdp=2, tensor=2)
  attend = functools.partial(splash.splash_attention, interpret=True)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    layout = jax.sharding.NamedSharding(mesh, jax.P(('data', 'fsdp'), None, 'tensor'))
    placed = [jax.device_put(x, layout) for x in (query, key, value)]
    compiled = jax.jit(attend).lower(*placed, segments).compile()
  assert 'all-gather' not in compiled.as_text()
  np.testing.assert_allclose(
    compiled(*placed, segments), attention.xla_attention(query, key, value, segments), atol=2e-5
  )


def test_shapes_that_the_kernel_cannot_take_are_refused_or_computed_plainly():
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
