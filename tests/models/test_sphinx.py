import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.configs import mini
from sphinx_jax.core import errors, trees
from sphinx_jax.models import families
from tests.models import small

CLOSE = dict(rtol=1e-4, atol=2e-5)


def encode(config, params, images):
  model = families.build(config)
  encoder = jax.jit(lambda params, images: model.apply({'params': params}, images, method='encode'))
  return np.asarray(encoder(params, images))


def forward(row, images):
  return np.asarray(small.light_forward()(small.light_params(), *row, images))


def test_no_gradient_from_the_future_or_from_another_segment():
  batch, images = small.row(small.examples()), small.images()
  length = len(small.examples()[0][0])
  model, params = families.build(small.light()), small.light_params()

  def logit(table, at):
    changed = {**params, 'llm': {**params['llm'], 'embed': table}}
    return model.apply({'params': changed}, *batch, images)[0, at].sum()

  # Give every position a different token, so that a token's gradient is a position's gradient.
  tokens = np.arange(small.T, dtype=np.int32)[None] % 50
  batch = (np.where(batch[1] >= 0, 0, tokens).astype(np.int32), *batch[1:])
  gradient = jax.jit(jax.grad(logit))
  at = length - 4
  reached = set(np.flatnonzero(np.abs(gradient(params['llm']['embed'], at)).sum(axis=1)))
  own = {int(t) for t, v, p in zip(batch[0][0, : at + 1], batch[1][0], range(at + 1)) if v < 0}
  assert reached == own
  second = set(np.flatnonzero(np.abs(gradient(params['llm']['embed'], length + 5)).sum(axis=1)))
  assert second == {int(t) for t in batch[0][0, length : length + 6]}


def test_packed_rows_equal_unpacked_ones_and_padding_has_no_effect():
  image_example, text_example = small.examples()
  packed = forward(small.row([text_example, image_example, text_example]), small.images())
  one = forward(small.row([image_example]), small.images())
  two = forward(small.row([text_example]), small.images(seed=5))
  n, m = len(image_example[0]), len(text_example[0])
  np.testing.assert_allclose(packed[0, m : m + n], one[0, :n], **CLOSE)
  np.testing.assert_allclose(packed[0, :m], two[0, :m], **CLOSE)
  np.testing.assert_allclose(packed[0, m + n : m + n + m], two[0, :m], **CLOSE)


def test_a_text_only_row_is_the_same_beside_images_and_without_any():
  rows = [small.row([example]) for example in small.examples()]
  both = [np.concatenate(fields) for fields in zip(*rows)]
  beside = np.asarray(
    small.light_forward()(small.light_params(), *both, np.repeat(small.images(), 2, axis=0))
  )
  alone = forward(rows[1], small.images()[:, :0])
  np.testing.assert_allclose(beside[1], alone[0], **CLOSE)


def test_the_image_reaches_the_text_after_it():
  example, _ = small.examples()
  a, b = (forward(small.row([example]), small.images(seed=s)) for s in (1, 2))
  n = len(example[0])
  assert np.abs(a[0, 0] - b[0, 0]).max() == 0
  assert np.abs(a[0, n - 1] - b[0, n - 1]).max() > 1e-3


def test_an_index_past_the_first_image_reads_the_second():
  tokens, index = small.examples()[0]
  words = families.visual_tokens(small.light())
  images = small.images(2)
  second = forward(small.row([(tokens, np.where(index < 0, -1, index + words))]), images)
  np.testing.assert_allclose(second, forward(small.row([(tokens, index)]), images[:, 1:]), **CLOSE)


def test_prefill_of_padded_prompts_and_decoding_equal_the_full_forward():
  config, params, model = small.light(), small.light_params(), families.build(small.light())
  example, other = small.examples()
  rows = [small.row([example]), small.row([other])]
  full = np.concatenate([forward(row, small.images()) for row in rows])
  tokens, index, positions, _ = (np.concatenate(fields) for fields in zip(*rows))
  positions = np.broadcast_to(np.arange(small.T, dtype=np.int32), tokens.shape)
  ends = np.array([len(example[0]), len(other[0])])
  visual = encode(config, params, np.repeat(small.images(), 2, axis=0))
  step = jax.jit(lambda *args: model.apply({'params': params}, *args, method='decode'))
  cut = ends - 4
  padding = 7  # The padding of a prompt must not matter.
  prompt = np.where(np.arange(small.T) < cut[:, None], tokens, padding)
  logits, cache = step(
    prompt, index, positions, visual, families.init_cache(config, 2, small.T + 4)
  )
  rows = np.arange(2)
  np.testing.assert_allclose(logits[rows, cut - 1], full[rows, cut - 1], **CLOSE)
  for k in range(4):
    at = cut + k
    logits, cache = step(
      tokens[rows, at][:, None],
      np.full((2, 1), -1, np.int32),
      at[:, None].astype(np.int32),
      None,
      cache,
    )
    np.testing.assert_allclose(logits[:, 0], full[rows, at], **CLOSE)


@functools.cache
@functools.cache
def _loss_and_gradient(**change):
  config = small.light(
    encoders=dict(clip=dict(view=16, patch=4, width=8, layers=2, heads=2)), **change
  )
  model, batch, params = (
    families.build(config),
    small.row(small.examples()),
    small.weights(families.abstract_params(config)),
  )
  loss = lambda params: jnp.square(model.apply({'params': params}, *batch, small.images())).mean()
  return jax.jit(jax.value_and_grad(loss))(params)


REMATS = [dict(remat=name) for name in ('full', 'mlp', 'dots_attention')]


@pytest.mark.parametrize('change', [dict(scan_unroll=2), *REMATS])
def test_unrolled_and_rematerialized_layers_compute_the_same(change):
  value, gradient = _loss_and_gradient()
  changed_value, changed_gradient = _loss_and_gradient(**change)
  np.testing.assert_allclose(value, changed_value, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, changed_gradient
  )


def official(size, grid, pool=1, light=False):
  tower = dict(view=224, patch=14, width=8, layers=1, heads=1)
  encoders = dict(
    dinov2=dict(tower, pos_grid=37),
    convnext=dict(
      view=512 if light else 224,
      input=512 if light else 256,
      depths=(1, 1, 1, 1),
      widths=(8, 8, 8, 8),
    ),
  )
  if not light:
    encoders |= dict(
      clip=tower,
      qformer=dict(
        view=224,
        patch=14,
        vit_width=8,
        vit_layers=1,
        vit_heads=1,
        vit_mlp=8,
        width=8,
        layers=2,
        heads=1,
        mlp=8,
        queries=32,
      ),
    )
  return small.config(image_size=size, grid=grid, pool=pool, encoders=encoders)


@pytest.mark.parametrize(
  'variant, words',
  [
    ((224, 1), 291),
    ((448, 2), 1455),
    ((672, 3), 2910),
    ((448, 2, 2), 687),
    ((512, 1, 1, True), 259),
    ((1024, 2, 1, True), 1295),
  ],
)
def test_official_variants_are_numbers_and_have_the_official_image_words(variant, words):
  assert families.visual_tokens(official(*variant)) == words


@functools.cache
def everything():
  """Parameters of `small.config()`, and jitted (params, images) -> visual tokens."""
  model = families.build(small.config())
  encoder = jax.jit(lambda params, images: model.apply({'params': params}, images, method='encode'))
  return small.weights(families.abstract_params(small.config())), encoder


# Tokens of a view: start and end, two query tokens, the class token, 4 x 4 cells.
VIEW = 2 + 2 + 1 + 16


def test_a_constant_image_gives_every_view_the_same_tokens():
  params, encoder = everything()
  visual = np.asarray(encoder(params, np.full((1, 1, 16, 16, 3), 90, np.uint8)))
  assert visual.shape[1] == families.visual_tokens(small.config()) == 5 * VIEW
  views = visual.reshape(5, VIEW, -1)
  np.testing.assert_allclose(views[1:], np.broadcast_to(views[:1], views[1:].shape), atol=1e-4)
  np.testing.assert_array_equal(views[0, 0], params['start_img'])
  np.testing.assert_array_equal(views[0, -1], params['end_img'])


def test_pooled_sub_images_keep_the_class_token_and_the_global_view():
  params, encoder = everything()
  full = encoder(params, small.images())[0]
  pooled = encode(small.config(pool=2), params, small.images())[0]
  assert len(pooled) == VIEW + 4 * (VIEW - 16 + 4)
  np.testing.assert_allclose(pooled[:VIEW], full[:VIEW], **CLOSE)
  edge = slice(VIEW, VIEW + 4)  # Start, query tokens and class token of the first sub-image.
  np.testing.assert_allclose(pooled[edge], full[edge], **CLOSE)
  assert np.abs(pooled[VIEW + 4 : VIEW + 8] - full[VIEW + 4 : VIEW + 8]).max() > 1e-2


def test_copies_of_the_class_token_take_the_place_of_query_tokens():
  """A mix without the Q-Former then has as many tokens as with it."""
  params, encoder = everything()
  without = small.config().unlock() if small.config().is_locked else small.config()
  without.encoders.qformer, without.class_repeats = None, 2
  left = {name: tree for name, tree in params.items() if name != 'qformer_proj'}
  left['encoders'] = {n: tree for n, tree in params['encoders'].items() if n != 'qformer'}
  full = np.asarray(encoder(params, small.images())[0])
  visual = np.asarray(encode(without, left, small.images())[0])
  assert len(visual) == families.visual_tokens(without) == families.visual_tokens(small.config())
  mixed = slice(3, VIEW)
  np.testing.assert_allclose(visual[mixed], full[mixed], **CLOSE)
  np.testing.assert_array_equal(visual[1:3], np.repeat(visual[3:4], 2, axis=0))


def test_order_of_encoders_in_the_config_changes_nothing():
  params, encoder = everything()
  config = small.config()
  encoders = {name: config.encoders[name] for name in reversed(list(config.encoders))}
  reordered = small.config(encoders=encoders)
  assert trees.differences(params, families.abstract_params(reordered)) == []
  np.testing.assert_array_equal(
    encoder(params, small.images()), encode(reordered, params, small.images())
  )


def test_siglip_adds_its_channels_to_those_of_the_mix():
  plain = small.config()
  tower = dict(view=8, patch=2, width=12, layers=1, heads=2, hidden=16)
  more = small.config(encoders={**plain.encoders.to_dict(), 'siglip': tower})
  width, wider = (
    families.abstract_params(config)['visual_proj']['linear']['kernel'].shape[0]
    for config in (plain, more)
  )
  assert wider == width + 12
  assert families.visual_tokens(more) == families.visual_tokens(plain)
  assert families.settings_of_weights(more)['encoders']['siglip']['hidden'] == 16


def test_siglip_learns_beside_the_other_encoders_of_the_small_recipe():
  config = mini.get_config('siglip').real.model
  shapes = families.abstract_params(config)['encoders']
  assert set(shapes) == {'clip', 'convnext', 'dinov2', 'qformer', 'siglip'}
  encoders = {name: config.encoders[name].to_dict() for name in ('clip', 'siglip')}
  both = small.config(encoders=encoders)
  params = families.init(both, jax.random.key(0))
  model = families.build(both)

  def spread(params):
    return model.apply({'params': params}, small.images(), method='encode').std()

  gradient = jax.jit(jax.grad(spread))(params)
  for name in encoders:
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient['encoders'][name]))


def test_every_dimension_of_every_parameter_has_a_logical_name():
  abstract, axes = families.abstract_params(small.config()), families.logical_axes(small.config())
  names = trees.flatten(axes)
  assert set(names) == set(trees.flatten(abstract))
  for path, leaf in trees.flatten(abstract).items():
    assert isinstance(names[path], tuple) and len(names[path]) == len(leaf.shape), path
    named = [name for name in names[path] if name]
    assert len(set(named)) == len(named), f'{path} uses a name twice'
    assert leaf.dtype == np.float32
  assert set(abstract) == {'encoders', 'visual_proj', 'qformer_proj', 'start_img', 'end_img', 'llm'}
  assert names['llm/layers/attention/wk/kernel'] == ('layers', 'embed', 'kv_heads')


@pytest.mark.parametrize('kernel', ['cudnn', 'splash'])
def test_parameters_are_made_for_a_kernel_of_any_platform(kernel):
  abstract = families.abstract_params(small.light(attention=kernel))
  assert trees.differences(abstract, families.abstract_params(small.light())) == []


def test_first_logits_are_small_and_layers_start_apart():
  params = families.init(small.light(), jax.random.key(0))
  assert trees.differences(params, families.abstract_params(small.light())) == []
  kernels = params['llm']['layers']['attention']['wq']['kernel']
  assert np.abs(kernels[0] - kernels[1]).max() > 0.1
  logits = small.light_forward()(params, *small.row(small.examples()), small.images())
  assert 0.02 < np.std(logits) < 1


def test_bfloat16_computes_close_to_float32_and_returns_float32_logits():
  row = small.row(small.examples())
  model = families.build(small.light(dtype='bfloat16'))
  forward_in_bfloat16 = jax.jit(lambda params, *fields: model.apply({'params': params}, *fields))
  logits = forward_in_bfloat16(small.light_params(), *row, small.images())
  assert logits.dtype == np.float32
  full = forward(row, small.images())
  assert 0 < np.abs(logits - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize(
  'break_it, message',
  [
    (lambda c: c.encoders.update(clop={}), "encoder: got 'clop'.*did you mean 'clip'"),
    (
      lambda c: c.encoders.convnext.update(depth=(1,)),
      "setting of encoder convnext: got 'depth'.*did you mean 'depths'",
    ),
    (lambda c: c.llm.update(name='lama'), "did you mean 'llama'"),
    (lambda c: c.encoders.convnext.update(input=18), 'encoder convnext: got an input of 18 pixels'),
    (
      lambda c: c.encoders.update(clip=dict(view=16, patch=5, width=8, layers=1, heads=1)),
      'a multiple of its patch, 5',
    ),
    (lambda c: c.llm.update(heads=3), 'llm: got width 16 and 3 heads'),
    (
      lambda c: c.encoders.update(clip=dict(view=16, patch=8, width=8, layers=1, heads=3)),
      'attention of an encoder: got width 8 and 3 heads',
    ),
    (
      lambda c: c.encoders.update(
        clip=dict(view=16, patch=8, width=8, layers=1, heads=1, mlp_ratio=0.1)
      ),
      "layer 'encoders/clip/.*': got .0,. features",
    ),
    (lambda c: c.encoders.convnext.update(depths=(1, 1)), 'convnext: got 2 depths and 1 widths'),
  ],
)
def test_wrong_settings_are_named(break_it, message):
  config = small.light()
  break_it(config)
  with pytest.raises(errors.SphinxError, match=message):
    families.abstract_params(config)


def test_wrong_image_size_and_a_cache_over_the_limit_are_refused():
  with pytest.raises(errors.SphinxError, match='images: got 8 pixels'):
    families.build(small.light()).apply(
      {'params': small.light_params()}, small.images(size=8), method='encode'
    )
  with pytest.raises(errors.SphinxError, match='cache: got 129 positions'):
    families.init_cache(small.light(), 1, 129)
