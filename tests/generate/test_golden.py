"""Every official variant, loaded from a release folder, gives the numbers of the official code.

Each case compiles one program, which serves all tests of the case.
"""

import functools
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax.checkpoint.foreign import pth_writer, sources
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import batch, errors
from sphinx_jax.models import experts, families
from tests.generate import golden

pytestmark = pytest.mark.usefixtures('optimized')
MODELS = golden.FOLDER / 'models'
# Golden forward -> its release folder, and the arguments of `sphinx_jax.load`.
CASES = {
  'llama_ens': ('llama_ens/mp2', {}),
  'llama_ens5': ('llama_ens5/mp1', {}),
  'llama_ens_light': ('llama_ens_light/mp1', {}),
  'mixtral_sparse_ens': ('mixtral_sparse_ens/mp2', {}),
  'llama_ens_float': ('llama_ens/mp1', dict(half_round=False)),
  'llama_ens_quickgelu': ('llama_ens/mp1', dict(clip_activation='quick_gelu')),
  'llama_ens5_float': ('llama_ens5/mp1', dict(half_round=False)),
  'llama_ens_light_float': ('llama_ens_light/mp1', dict(half_round=False)),
}
# The other forwards change one option, which tests/test_load.py and tests/models cover too.
DENSE = ('llama_ens', 'llama_ens5', 'llama_ens_light')
QUICK = (*DENSE, 'mixtral_sparse_ens')
# For tests of fewer cases. pytest groups tests by the position of their case, so these must be the
# first of CASES: every case is then made once.
plain = pytest.mark.parametrize('case', QUICK, indirect=True)
dense = pytest.mark.parametrize('case', DENSE, indirect=True)
mixture = pytest.mark.parametrize('case', QUICK[-1:], indirect=True)
first = pytest.mark.parametrize('case', QUICK[:1], indirect=True)
FEATURES, LOGITS = 5e-5, 1e-4  # Absolute tolerances.


class Case:
  """A golden forward and the loaded model.

  `base` has the inputs, which all forwards of a variant share.
  """

  def __init__(self, name):
    self.variant = name.removesuffix('_float').removesuffix('_quickgelu')
    self.expected, self.base = golden.forward(name), golden.forward(self.variant)
    self.folder, options = MODELS / CASES[name][0], CASES[name][1]
    self.actual = golden.run(self.folder, self.base['tokens'], self.base['image_u8'], **options)


def slow_unless(quick, name):
  return name if name in quick else pytest.param(name, marks=pytest.mark.slow)


@functools.lru_cache
def load_case(name):
  """A case is loaded and compiled once, in whatever order the tests run."""
  return Case(name)


@pytest.fixture(params=[slow_unless(QUICK, name) for name in CASES])
def case(request):
  return load_case(request.param)


def close(actual, expected, atol):
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_features_are_the_official_ones(case):
  views, every = (5, 3) if case.variant == 'llama_ens5' else (1, 1)

  def view_by_view(x):  # The official order; the model goes row by row.
    return x.reshape(2, views, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

  features = {name: view_by_view(x) for name, x in case.actual.features.items()}
  for name in ('clip', 'dinov2'):
    if name in case.expected:
      close(features[name][:, ::every], case.expected[name], FEATURES)
  for name in ('qformer', 'blip_vit'):
    if name in case.expected:
      close(features[name], case.expected[name], FEATURES)
  if 'convnext_raw' in case.expected:
    raw = case.expected['convnext_raw']
    feature_map = features['convnext'][:, 1:].reshape(len(raw), *raw.shape[2:], -1)
    close(feature_map.transpose(0, 3, 1, 2), raw, FEATURES)


def test_image_tokens_are_the_official_ones(case):
  words, expected = golden.WORDS[case.variant], case.expected['image_tokens']
  assert (
    case.actual.image_tokens.shape[1] == words == families.visual_tokens(case.actual.model.config)
  )
  views = case.actual.image_tokens.reshape(2, *expected.shape[:-3], -1, expected.shape[-1])
  if case.variant == 'llama_ens5':
    views, expected = views[:, :, 1:-1][:, :, ::3], expected.swapaxes(0, 1)
  else:
    views = views[:, 1:-1]
  close(views, expected, FEATURES)


def test_logits_are_the_official_ones(case):
  close(case.actual.logits, case.expected['logits'], LOGITS)


@plain
def test_logits_of_text_alone_are_the_official_ones(case):
  close(case.actual.model.logits(case.base['tokens']), case.expected['text_logits'], LOGITS)


@plain
def test_greedy_continuations_are_the_official_ones(case):
  """Prefill of right-padded prompts and eight cached steps.

  Both rows with their images, and the first row without.
  """
  model, words = case.actual.model, golden.WORDS[case.variant]
  lengths = case.base['lengths']
  prompts = [case.base['tokens'][row][: lengths[row]] for row in (0, 1, 0)]
  fields = [
    batch.interleave(prompt, images_at, words)
    for prompt, images_at in zip(prompts, ((1,), (1,), ()))
  ]
  starts = np.array([len(tokens) for tokens, _ in fields])
  padding = [(0, starts.max() - start) for start in starts]
  tokens = np.stack([np.pad(tokens, pad) for (tokens, _), pad in zip(fields, padding)])
  index = np.stack(
    [np.pad(index, pad, constant_values=-1) for (_, index), pad in zip(fields, padding)]
  )
  recorded = [('', 0), ('', 1), ('text_', 0)]
  module = families.build(model.config)
  step = jax.jit(lambda *fields: module.apply({'params': model.params}, *fields, method='decode'))
  positions = np.broadcast_to(np.arange(starts.max(), dtype=np.int32), tokens.shape)
  cache = families.init_cache(model.config, 3, starts.max() + 8)
  logits, cache = step(tokens, index, positions, case.actual.image_tokens[[0, 1, 0]], cache)
  now = np.asarray(logits)[np.arange(3), starts - 1]
  for k in range(8):
    expected = np.stack([case.expected[f'greedy_{name}logits_{i}'][k] for name, i in recorded])
    close(now, expected, LOGITS)
    chosen = now.argmax(-1).astype(np.int32)
    assert chosen.tolist() == [case.expected[f'greedy_{name}tokens_{i}'][k] for name, i in recorded]
    logits, cache = step(
      chosen[:, None],
      np.full((3, 1), -1, np.int32),
      (starts + k)[:, None].astype(np.int32),
      None,
      cache,
    )
    now = np.asarray(logits)[:, 0]


@first
def test_complete_gives_the_official_text(case):
  prompts = [tokens[:n].tolist() for tokens, n in zip(case.base['tokens'], case.base['lengths'])]
  model = case.actual.model
  texts = model.complete(prompts, visual=case.actual.image_tokens, max_new_tokens=8)
  assert texts == [
    model.tokenizer.decode(case.expected[f'greedy_tokens_{i}']).strip() for i in range(2)
  ]


@first
def test_int8_takes_nearly_the_same_tokens(case):
  """Random weights have small margins: 95 % of 1024 likeliest tokens (docs/results.md)."""
  model = sphinx_jax.load(case.folder, weights='int8')
  logits = model.logits(case.base['tokens'])
  expected = case.expected['text_logits']
  assert np.mean(logits.argmax(-1) == expected.argmax(-1)) >= 0.9
  top = np.sort(expected, axis=-1)
  is_clear = top[..., -1] - top[..., -2] > 0.3
  assert is_clear.mean() > 0.3
  np.testing.assert_array_equal(logits.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


@first
def test_an_over_long_prompt_is_an_error_and_never_cut(case):
  """The official code drops BOS and the first tokens, and then generates only padding.

  Source: docs/official_sphinx.md, "Generation".
  """
  model, prompt = case.actual.model, [1] + [5] * (1024 - 291 - 1)
  with pytest.raises(
    errors.SphinxError, match='a prompt of 1024 positions.*fewer than llm.max_length=1024'
  ):
    model.complete([prompt], visual=case.actual.image_tokens[:1], max_new_tokens=8)


@first
def test_pixels_reach_the_encoders_bit_equal(case):
  seen = np.ascontiguousarray(case.actual.views['clip'].transpose(0, 3, 1, 2))
  assert hashlib.sha256(seen.tobytes()).hexdigest() == case.expected['image_sha256']


@mixture
def test_routers_choose_as_the_official_ones(case):
  """At all positions: BOS, image, text and padding."""
  module, words = families.build(case.actual.model.config), golden.WORDS[case.variant]

  def choices(images_at, visual):
    rows = [batch.interleave(tokens, images_at, words) for tokens in case.base['tokens']]
    tokens, index = (np.stack(field) for field in zip(*rows))
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    fields = tokens, index, positions, np.ones_like(tokens), None, None, visual
    run = functools.partial(module.apply, method='hidden_states', mutable=[experts.CHOICES])
    _, records = jax.jit(run)({'params': case.actual.model.params}, *fields)
    return records[experts.CHOICES]['llm']['layers']['feed_forward']

  for prefix, arguments in (('', ((1,), case.actual.image_tokens)), ('text_', ((), None))):
    found = choices(*arguments)
    recorded = {
      name: case.expected[f'{prefix}router_{name}'] for name in ('logits', 'index', 'weight')
    }
    np.testing.assert_array_equal(found['index'], recorded['index'])
    close(found['logits'], recorded['logits'], LOGITS)
    close(found['weight'], recorded['weight'], LOGITS)


@mixture
@pytest.mark.parametrize('folder', ['mixtral/mp2', 'mixtral_hf', 'mixtral_hf_fused'])
def test_every_form_of_a_language_model_gives_its_numbers(case, folder):
  model = sphinx_jax.load(MODELS / folder, dtype='float32')
  close(model.logits(case.base['tokens']), case.expected['text_logits'], LOGITS)


@dense
def test_the_decoder_in_numpy_is_the_official_one(case):
  """The numpy decoder is the reference for the variants below, whose forwards are not recorded."""
  w, config, tokens = golden.weights(case.folder), golden.config(case.folder), case.base['tokens']
  text_logits = golden.logits(tokens[0], np.zeros((0, 64), np.float32), w, config)
  close(text_logits, case.expected['text_logits'][0], LOGITS)
  views = len(case.actual.features['dinov2']) // 2
  features = {name: x[:views] for name, x in case.actual.features.items()}
  visual = golden.image_tokens(features, w, views, pool=False)
  close(visual, case.actual.image_tokens[0], FEATURES)
  close(golden.logits(tokens[0], visual, w, config), case.expected['logits'][0], LOGITS)


def test_shards_load_as_the_whole():
  one, two = (sphinx_jax.load(MODELS / 'llama_ens' / folder).params for folder in ('mp1', 'mp2'))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_quick_gelu_is_what_the_release_config_asks_for(tmp_path):
  """The official loader of OpenAI's weights builds QuickGELU (docs/official_sphinx.md, "CLIP")."""
  pretrained = golden.release(
    tmp_path / 'pretrained', 'llama_ens', 'llama_ens', load_pretrained_visual_encoder=True
  )
  assert sources.open_source(pretrained).settings.encoders.clip.activation == 'quick_gelu'
  assert sources.open_source(MODELS / 'llama_ens/mp1').settings.encoders.clip.activation == 'gelu'


def test_a_language_model_alone_from_metas_files(tmp_path):
  """Two key/value heads and halved positions, as in tests/models/test_llama.py."""
  recorded = np.load(MODELS / 'llama_text_gqa_rope.npz')
  arrays = {key.removeprefix('w/'): recorded[key] for key in recorded if key.startswith('w/')}
  pth_writer.write_pth(
    tmp_path / 'consolidated.00.pth',
    {key: Tensor(x.shape, x.dtype, x.copy) for key, x in arrays.items()},
  )
  params = dict(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=128,
    multiple_of=32,
    norm_eps=1e-5,
    rope_theta=10000,
    max_seq_len=64,
    rope_scaling=0.5,
  )
  (tmp_path / 'params.json').write_text(json.dumps(params))
  model = sphinx_jax.load(tmp_path)
  close(model.logits(recorded['tokens']), recorded['logits'], LOGITS)
  with pytest.raises(errors.SphinxError, match='weights without a tokenizer'):
    model.generate(['a'])


class Derived:
  """A variant without a recorded forward, on the weights of a variant that has one."""

  def __init__(self, name, folder):
    self.name, (weights, changes) = name, golden.DERIVED[name]
    self.folder = golden.release(folder, weights, name, **changes)
    recorded = golden.forward('llama_ens5')
    self.tokens = recorded['tokens'][:1]
    sizes = {'llama_ens10': 672, 'llama_ens5_light': 1024}
    # llama_ens5p2 gets an image whose features are recorded.
    self.images = waves(sizes[name]) if name in sizes else recorded['image_u8'][:1]
    self.actual = golden.run(self.folder, self.tokens, self.images)
    self.views = len(self.actual.features['dinov2'])


def waves(size):
  """A smooth image with noise, uint8[1,size,size,3]."""
  rows, columns = np.arange(size)[:, None, None], np.arange(size)[None, :, None]
  smooth = 128 + 50 * (np.sin(rows / (31, 17, 57)) + np.cos(columns / (19, 41, 23)))
  noise = np.random.default_rng(7).integers(-20, 20, (size, size, 3))
  return (smooth + noise).astype(np.uint8)[None]


@pytest.fixture(scope='module', params=[slow_unless((), name) for name in golden.DERIVED])
def derived(request, tmp_path_factory):
  return Derived(request.param, tmp_path_factory.mktemp('release') / request.param)


def test_each_encoder_sees_the_official_views(derived):
  """A bicubic global view, then squares row by row.

  The squares are cut from the image itself if it has their size in total.
  """
  pixels = (derived.images[0].astype(np.float32) / np.float32(255) - golden.MEAN) / golden.STD
  half = pixels.astype(np.float16).astype(np.float64)
  if derived.name == 'llama_ens5_light':
    encoders, sizes = {'convnext', 'dinov2'}, {'convnext': 512}
  else:
    encoders, sizes = {'clip', 'convnext', 'dinov2', 'qformer', 'blip_vit'}, {}
  assert set(derived.actual.views) == encoders
  grid = 3 if derived.name == 'llama_ens10' else 2
  for name, seen in derived.actual.views.items():
    view = sizes.get(name, 224)
    assert seen.shape == (1 + grid**2, view, view, 3)
    np.testing.assert_allclose(seen[0], golden.bicubic(half, view), rtol=0, atol=4e-3)
    np.testing.assert_array_equal(seen[0], seen[0].astype(np.float16).astype(np.float32))
    if len(pixels) == grid * view:
      np.testing.assert_array_equal(seen[1:], golden.crops(pixels, view))
    else:
      canvas = golden.bicubic(half, grid * view)
      np.testing.assert_allclose(seen[1:], golden.crops(canvas, view), rtol=0, atol=4e-3)
      np.testing.assert_array_equal(seen[1:], seen[1:].astype(np.float16).astype(np.float32))


def test_image_tokens_follow_from_the_features(derived):
  w, pool = golden.weights(derived.folder), derived.name == 'llama_ens5p2'
  assert derived.actual.image_tokens.shape == (1, golden.WORDS[derived.name], 64)
  expected = golden.image_tokens(derived.actual.features, w, derived.views, pool)
  close(expected, derived.actual.image_tokens[0], FEATURES)
  if pool:  # The features themselves are recorded for this image.
    recorded = golden.forward('llama_ens5')
    for name, every in (('clip', 3), ('dinov2', 3), ('qformer', 1)):
      close(derived.actual.features[name][:, ::every], recorded[name][::2], FEATURES)


def test_logits_follow_from_the_image_tokens(derived):
  """Rotary base, scaling and the norm's epsilon are those of the variant."""
  w, config = golden.weights(derived.folder), golden.config(derived.folder)
  expected = golden.logits(derived.tokens[0], derived.actual.image_tokens[0], w, config)
  close(derived.actual.logits[0], expected, LOGITS)


def test_five_views_of_sphinx_moe_1k_see_their_own_part(tmp_path):
  """No numbers of this variant were recorded. Its encoders and its views were, apart."""
  folder = tmp_path / 'mixtral_sparse_ens5'
  shutil.copytree(MODELS / 'mixtral_sparse_ens' / 'mp2', folder)
  (folder / 'meta.json').write_text(json.dumps({'llama_type': 'mixtral_sparse_ens5'}))
  model = sphinx_jax.load(folder)
  noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
  images = [np.full((1024, 1024, 3), (100, 150, 30), np.uint8) for _ in range(3)]
  images[1][600:900, 100:400], images[2][100:400, 600:900] = noise, noise
  plain, lower_left, upper_right = np.asarray(model.encode_images(images)).reshape(3, 5, 291, -1)
  # Views: all of the image, then its quarters, row by row. All of a plain image are alike.
  np.testing.assert_allclose(plain, plain[:1].repeat(5, axis=0), atol=5e-3)
  for changed, part in ((lower_left, 3), (upper_right, 2)):
    moved = np.abs(changed - plain).max(axis=(1, 2)) > 0.1
    assert np.flatnonzero(moved).tolist() == [0, part]
    others = [view for view in range(5) if view not in (0, part)]
    np.testing.assert_allclose(changed[others], plain[others], atol=1e-4)
