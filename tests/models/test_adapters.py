"""Laws of adapters and quantized matrices in a whole model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors, trees
from sphinx_jax.models import adapters, families, quantized, stored
from tests.generate import small

LAYERS = 'llm/layers/(attention/wq|feed_forward/w2)|visual_proj/linear'


@functools.cache
def logits():
  module = families.build(small.config())
  tokens = jnp.arange(5, 17)[None]
  fields = (tokens, jnp.full_like(tokens, -1), jnp.arange(12)[None], jnp.ones_like(tokens))
  images = jnp.zeros((1, 0, 16, 16, 3), jnp.uint8)
  return jax.jit(lambda params: module.apply({'params': trees.unflatten(params)}, *fields, images))


@functools.cache
def tree():
  """Parameters with adapters of rank 4 whose second matrix is not 0, and the paths of these."""
  config = small.config()
  axes = families.logical_axes(config)
  ranks = adapters.ranks(adapters.matrices(axes), LAYERS, 4, ())
  shapes, _ = adapters.extend(families.abstract_params(config), axes, ranks)
  fresh = adapters.fresh(shapes, dict.fromkeys(ranks, 2.0), jax.random.key(1))
  return {**trees.flatten(small.params()), **fresh}, list(ranks)


def trained():
  params, layers = tree()
  rng = np.random.default_rng(2)
  b = [path for path in params if path.endswith(f'/{adapters.B}')]
  return {**params, **{path: rng.normal(size=params[path].shape) / 9 for path in b}}, layers


def merged(params, sign=1):
  """Plain parameters: quantized kernels widened, adapters added or subtracted."""
  plain, axes = {}, trees.flatten(families.logical_axes(small.config()))
  for path, leaf in params.items():
    layer, _, name = path.rpartition('/')
    if name not in (*adapters.LEAVES, quantized.SCALE, *quantized.FORMS):
      plain[path] = leaf
  for layer, leaves in stored.by_layer(params).items():
    factor = {adapters.SCALE: sign * leaves[adapters.SCALE]} if adapters.A in leaves else {}
    stack = adapters.stack_of(axes[f'{layer}/{adapters.KERNEL}'])
    plain[f'{layer}/{adapters.KERNEL}'] = stored.merge(leaves | factor, stack)
  return plain


def test_a_fresh_adapter_changes_no_bit():
  params, _ = tree()
  np.testing.assert_array_equal(logits()(params), logits()(trees.flatten(small.params())))


def test_merged_weights_give_the_logits_of_the_adapter():
  params, layers = trained()
  assert len(layers) == 3
  with_adapter = logits()(params)
  np.testing.assert_allclose(logits()(merged(params)), with_adapter, atol=2e-5)
  assert np.abs(with_adapter - logits()(trees.flatten(small.params()))).max() > 0.01


def test_the_loss_gets_the_lm_head_with_its_adapter_beside_it():
  config, layer = small.config(), 'llm/output'
  shapes, _ = adapters.extend(
    families.abstract_params(config), families.logical_axes(config), {layer: 4}
  )
  leaves = adapters.fresh(shapes, {layer: 3.0}, jax.random.key(1))
  leaves[f'{layer}/{adapters.B}'] += 0.1
  params = trees.unflatten({**trees.flatten(small.params()), **leaves})
  (block,) = families.build(config).apply({'params': params}, method='lm_head_matrices')
  assert isinstance(block, adapters.Adapted)
  expected = stored.merge(params['llm']['output'], 0)
  np.testing.assert_allclose(block.kernel + block.a @ block.b, expected, atol=1e-5)


def test_subtracting_a_merged_adapter_gives_the_base_back():
  params, _ = trained()
  adapter = {path: leaf for path, leaf in params.items() if adapters.is_adapter(path)}
  back = merged({**merged(params), **adapter}, sign=-1)
  for path, leaf in trees.flatten(small.params()).items():
    np.testing.assert_allclose(back[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.parametrize('form', quantized.STORED)
def test_quantized_layers_with_adapters_give_the_logits_of_their_merged_weights(form):
  params, _ = trained()
  forms = stored.matrices(families.logical_axes(small.config()), form)
  assert 'llm/output' not in forms and 'encoders/convnext/stage0/up' in forms
  few = {**params}
  for layer, matrix in forms.items():
    kernel, of_one = few.pop(f'{layer}/kernel'), lambda one: quantized.quantize(one, form)
    leaves = stored.over_stack(of_one, matrix.stack)(kernel)
    few |= {f'{layer}/{name}': leaf for name, leaf in leaves.items()}
  np.testing.assert_allclose(logits()(few), logits()(merged(few)), atol=2e-5)


def test_ranks_follow_the_first_pattern_and_zero_means_none():
  layers = adapters.matrices(families.logical_axes(small.config()))
  ranks = adapters.ranks(layers, 'llm/layers/.*', 16, [('.*/w[kv]', 0), ('.*/attention/.*', 8)])
  assert ranks == {
    'llm/layers/attention/wo': 8,
    'llm/layers/attention/wq': 8,
    'llm/layers/feed_forward/w1': 16,
    'llm/layers/feed_forward/w2': 16,
    'llm/layers/feed_forward/w3': 16,
  }
  assert adapters.ranks(layers, 'none', 16, ()) == {}
  with pytest.raises(errors.SphinxError, match="lora.target 'decoder"):
    adapters.ranks(layers, 'decoder/.*', 16, ())


def test_a_rank_over_the_side_of_a_matrix_is_refused():
  config = small.config()
  with pytest.raises(errors.SphinxError, match="attention/wq': got rank 33"):
    adapters.extend(
      families.abstract_params(config),
      families.logical_axes(config),
      {'llm/layers/attention/wq': 33},
    )


def test_a_stored_shape_that_does_not_fit_is_refused():
  params, _ = tree()
  path = 'llm/layers/attention/wq/lora_b'
  with pytest.raises(errors.SphinxError, match='llm/layers/attention/wq/lora_b'):
    logits()({**params, path: params[path][:, :, :-1]})
