import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.models import layers, sphinx
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer, siglip, vit
from tests.models import small

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'models'


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def apply(module, *inputs):
  params = small.weights(
    jax.eval_shape(lambda rng: nn.unbox(module.init(rng, *inputs)['params']), jax.random.key(0))
  )
  return params, jax.jit(lambda params: module.apply({'params': params}, *inputs))(params)


def test_both_depthwise_convolutions_and_their_gradients_are_equal():
  x, kernel = normal(3, 9, 9, 5), normal(7, 7, 5, seed=1)

  def value_and_gradients(convolve):
    total = lambda x, kernel: jnp.sin(convolve(x, kernel)).sum()
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(x, kernel)
    return jax.jit(convolve)(x, kernel), *gradients

  variants = (convnext.depthwise_shifted, convnext.depthwise_grouped, convnext.depthwise)
  results = [value_and_gradients(convolve) for convolve in variants]
  for other in results[1:]:
    for a, b in zip(results[0], other):
      np.testing.assert_allclose(a, b, atol=2e-4)


def test_position_embeddings_of_dinov2_are_interpolated_as_the_official_code_does():
  golden = np.load(GOLDEN / 'dinov2_pos.npz')
  np.testing.assert_allclose(
    dinov2.interpolate(jnp.asarray(golden['stored']), 16), golden['interpolated'], atol=2e-6
  )
  np.testing.assert_array_equal(
    dinov2.interpolate(jnp.asarray(golden['stored']), 37), golden['stored']
  )


def test_patches_are_a_strided_convolution():
  x = normal(2, 12, 12, 3)
  params, out = apply(layers.PatchEmbed(4, 5), x)
  convolved = jax.lax.conv_general_dilated(
    x, params['kernel'], (4, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(out, convolved + params['bias'], atol=1e-5)


def test_siglip_in_the_mix_is_its_tower_on_pixels_of_its_own_statistics():
  pixels = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  settings = dict(patch=4, width=8, layers=1, heads=2, hidden=16)
  module = siglip.Siglip(view=8, **settings, image_mean=sphinx.MEAN, image_std=sphinx.STD)
  params, (mean, features) = apply(
    module, (pixels - jnp.array(sphinx.MEAN)) / jnp.array(sphinx.STD)
  )
  tower = siglip.Tower(**settings, pos_grid=2)
  patches = jax.jit(tower.apply)(
    {'params': params['tower']},
    siglip.cut(2 * pixels - 1, 4),
    jnp.array([[0, 1, 2, 3]] * 2),
    jnp.ones((2, 4), jnp.int32),
  )
  np.testing.assert_allclose(features.reshape(2, 4, 8), patches, atol=1e-4)
  np.testing.assert_allclose(mean, patches.mean(axis=1), atol=1e-4)


def test_dinov2_renormalizes_to_imagenet_statistics():
  """Views normalized with other statistics of the same pixels give the same features."""
  pixels = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
  settings = dict(view=8, patch=4, width=8, layers=1, heads=2, pos_grid=2)
  module = dinov2.DinoV2(**settings, image_mean=sphinx.MEAN, image_std=sphinx.STD)
  plain = dinov2.DinoV2(**settings, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
  params, (cls, features) = apply(module, (pixels - jnp.array(sphinx.MEAN)) / jnp.array(sphinx.STD))
  other_cls, other_features = jax.jit(plain.apply)({'params': params}, pixels)
  np.testing.assert_allclose(cls, other_cls, atol=1e-4)
  np.testing.assert_allclose(features, other_features, atol=1e-4)
  hidden = (int(4 * 8 * 2 / 3) + 7) // 8 * 8
  assert params['trunk']['layers']['mlp']['down']['kernel'].shape == (1, hidden, 8)


def test_class_feature_of_convnext_is_the_mean_over_positions():
  module = convnext.ConvNext(view=8, depths=(1, 1), widths=(4, 6), input=16)
  _, (cls, features) = apply(module, normal(2, 8, 8, 3))
  assert features.shape == (2, 2, 2, 6)
  np.testing.assert_allclose(cls, features.mean(axis=(1, 2)), atol=1e-6)


def test_quick_gelu_is_another_activation_of_clip():
  x = normal(1, 8, 8, 3)
  settings = dict(view=8, patch=4, width=8, layers=1, heads=2)
  params, (cls, features) = apply(clip.Clip(**settings), x)
  quick, _ = jax.jit(clip.Clip(**settings, activation='quick_gelu').apply)({'params': params}, x)
  assert cls.shape == (1, 8) and features.shape == (1, 2, 2, 8)
  assert 1e-5 < np.abs(quick - cls).max() < 0.1
  np.testing.assert_allclose(layers.activate('gelu', jnp.array([1.0])), 0.8413447, atol=1e-6)
  np.testing.assert_allclose(layers.activate('quick_gelu', jnp.array([1.0])), 0.8457958, atol=1e-6)


@pytest.mark.parametrize('count, groups', [(1, {'last'}), (2, {'pairs'}), (5, {'pairs', 'last'})])
def test_even_layers_of_the_qformer_cross_attend(count, groups):
  module = qformer.QFormer(
    view=8,
    patch=4,
    vit_width=8,
    vit_layers=1,
    vit_heads=2,
    vit_mlp=16,
    width=12,
    layers=count,
    heads=3,
    mlp=16,
    queries=4,
  )
  out, variables = jax.eval_shape(
    lambda rng: module.init_with_output(rng, normal(2, 8, 8, 3)), jax.random.key(0)
  )
  params = variables['params']
  assert out.shape == (2, 4, 12)
  assert groups == set(params) & {'pairs', 'last'}
  if 'pairs' in groups:
    assert 'cross' in params['pairs']['even'] and 'cross' not in params['pairs']['odd']
    assert params['pairs']['odd']['self']['query']['kernel'].value.shape[0] == count // 2


def test_layers_stored_in_bfloat16_are_widened_one_at_a_time():
  module, x = vit.Trunk(layers=8, heads=2, hidden=256, eps=1e-6), normal(1, 5, 64)
  shapes = jax.eval_shape(lambda rng: nn.unbox(module.init(rng, x)['params']), jax.random.key(0))
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small.weights(shapes))
  forward = jax.jit(
    lambda params: module.apply({'params': params}, x), compiler_options=layers.compiler_options()
  )
  used = forward.lower(params).compile().memory_analysis().temp_size_in_bytes
  float32_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
  assert used < float32_bytes * 2 / 8  # At most two of the eight layers.
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
  np.testing.assert_allclose(forward(params), jax.jit(module.apply)({'params': wide}, x), atol=1e-5)
