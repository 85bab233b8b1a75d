"""Every official variant, loaded from a release folder, against the official code: features, image tokens, logits, greedy."""

import hashlib
import json

import jax
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax.checkpoint.foreign import pth_writer, sources
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors
from sphinx_jax.models import sphinx
from tests.generate import golden

MODELS = golden.FOLDER / 'models'
# Golden forward -> the folder that it runs on, and how it is loaded.
CASES = {
  'llama_ens': ('llama_ens/mp2', {}),
  'llama_ens5': ('llama_ens5/mp1', {}),
  'llama_ens_light': ('llama_ens_light/mp1', {}),
  'llama_ens_float': ('llama_ens/mp1', dict(half_round=False)),
  'llama_ens_quickgelu': ('llama_ens/mp1', dict(clip_activation='quick_gelu')),
  'llama_ens5_float': ('llama_ens5/mp1', dict(half_round=False)),
  'llama_ens_light_float': ('llama_ens_light/mp1', dict(half_round=False)),
}
# Tests of fewer cases; the first of CASES, so that pytest, which groups by place, makes each case once.
plain = pytest.mark.parametrize('case', list(CASES)[:3], indirect=True)
first = pytest.mark.parametrize('case', list(CASES)[:1], indirect=True)
FEATURES, LOGITS = 5e-5, 1e-4  # Absolute, as promised.


class Case:
  """A golden forward and ours; `base` holds the inputs, which the forwards of one variant share."""

  def __init__(self, name):
    self.variant = name.removesuffix('_float').removesuffix('_quickgelu')
    self.want, self.base = golden.forward(name), golden.forward(self.variant)
    self.folder, options = MODELS / CASES[name][0], CASES[name][1]
    self.ours = golden.run(self.folder, self.base['tokens'], self.base['image_u8'], **options)


@pytest.fixture(scope='module', params=CASES)
def case(request):
  return Case(request.param)


def close(ours, theirs, atol):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def test_features_are_the_official_ones(case):
  views, every = (5, 3) if case.variant == 'llama_ens5' else (1, 1)
  official = lambda x: (
    x.reshape(2, views, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
  )  # View by view, not row by row.
  features = {name: official(x) for name, x in case.ours.features.items()}
  for name in ('clip', 'dinov2'):
    if name in case.want:
      close(features[name][:, ::every], case.want[name], FEATURES)
  for name in ('qformer', 'blip_vit'):
    if name in case.want:
      close(features[name], case.want[name], FEATURES)
  if 'convnext_raw' in case.want:
    raw = case.want['convnext_raw']
    close(
      features['convnext'][:, 1:].reshape(len(raw), *raw.shape[2:], -1).transpose(0, 3, 1, 2),
      raw,
      FEATURES,
    )


def test_image_tokens_are_the_official_ones(case):
  words, want = golden.WORDS[case.variant], case.want['image_tokens']
  assert case.ours.image_tokens.shape[1] == words == sphinx.visual_tokens(case.ours.model.config)
  views = case.ours.image_tokens.reshape(2, *want.shape[:-3], -1, 64)
  if case.variant == 'llama_ens5':
    views, want = views[:, :, 1:-1][:, :, ::3], want.swapaxes(0, 1)
  else:
    views = views[:, 1:-1]
  close(views, want, FEATURES)


def test_logits_are_the_official_ones(case):
  close(case.ours.logits, case.want['logits'], LOGITS)


@plain
def test_logits_of_text_alone_are_the_official_ones(case):
  close(case.ours.model.logits(case.base['tokens']), case.want['text_logits'], LOGITS)


@plain
def test_greedy_continuations_are_the_official_ones(case):
  """Prefill of right-padded prompts and eight cached steps: both rows with their images, and the first without."""
  model, words, lengths = (
    case.ours.model,
    golden.WORDS[case.variant],
    case.base['lengths'][[0, 1, 0]],
  )
  starts = np.array([words, words, 0]) + lengths
  tokens, index = np.zeros((3, starts.max()), np.int32), np.full((3, starts.max()), -1, np.int32)
  for row, (prompt, begin) in enumerate(zip(case.base['tokens'][[0, 1, 0]], (words, words, 0))):
    tokens[row, 0], tokens[row, 1 + begin : starts[row]] = prompt[0], prompt[1 : lengths[row]]
    index[row, 1 : 1 + begin] = np.arange(begin)
  module = sphinx.build(model.config)
  step = jax.jit(lambda *fields: module.apply({'params': model.params}, *fields, method='decode'))
  positions = np.broadcast_to(np.arange(starts.max(), dtype=np.int32), tokens.shape)
  cache = sphinx.init_cache(model.config, 3, starts.max() + 8)
  logits, cache = step(tokens, index, positions, case.ours.image_tokens[[0, 1, 0]], cache)
  now = np.asarray(logits)[np.arange(3), starts - 1]
  for k in range(8):
    close(
      now,
      np.stack(
        [case.want[f'greedy_{name}logits_{i}'][k] for name, i in (('', 0), ('', 1), ('text_', 0))]
      ),
      LOGITS,
    )
    chosen = now.argmax(-1).astype(np.int32)
    assert chosen.tolist() == [
      case.want[f'greedy_{name}tokens_{i}'][k] for name, i in (('', 0), ('', 1), ('text_', 0))
    ]
    logits, cache = step(
      chosen[:, None],
      np.full((3, 1), -1, np.int32),
      (starts + k)[:, None].astype(np.int32),
      None,
      cache,
    )
    now = np.asarray(logits)[:, 0]


@first
def test_the_generator_says_what_the_official_one_does(case):
  prompts = [tokens[:n].tolist() for tokens, n in zip(case.base['tokens'], case.base['lengths'])]
  said = case.ours.model.complete(
    prompts, visual=case.ours.image_tokens, max_new_tokens=8
  )
  assert said == [
    case.ours.model.tokenizer.decode(case.want[f'greedy_tokens_{i}']).strip() for i in range(2)
  ]


@first
def test_an_over_long_prompt_is_an_error_where_the_official_code_loses_its_head(case):
  """FACTS "Generation": theirs drops BOS and what follows, and then generates only padding."""
  model = case.ours.model
  with pytest.raises(
    errors.SphinxError, match='a prompt of 1024 positions.*fewer than llm.max_length=1024'
  ):
    model.complete(
      [[1] + [5] * (1024 - 291 - 1)], visual=case.ours.image_tokens[:1], max_new_tokens=8
    )


@first
def test_pixels_reach_the_encoders_bit_equal(case):
  seen = np.ascontiguousarray(case.ours.views['clip'].transpose(0, 3, 1, 2))
  assert hashlib.sha256(seen.tobytes()).hexdigest() == case.want['image_sha256']


@plain
def test_the_decoder_in_numpy_is_the_official_one(case):
  """What judges the variants below that have no golden forward here."""
  w, said = golden.weights(case.folder), golden.config(case.folder)
  close(
    golden.logits(case.base['tokens'][0], np.zeros((0, 64), np.float32), w, said),
    case.want['text_logits'][0],
    LOGITS,
  )
  views = len(case.ours.features['dinov2']) // 2
  visual = golden.image_tokens(
    {name: x[:views] for name, x in case.ours.features.items()}, w, views, pool=False
  )
  close(visual, case.ours.image_tokens[0], FEATURES)
  close(golden.logits(case.base['tokens'][0], visual, w, said), case.want['logits'][0], LOGITS)


def test_shards_load_as_the_whole():
  one, two = (sphinx_jax.load(MODELS / 'llama_ens' / folder).params for folder in ('mp1', 'mp2'))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_quick_gelu_is_what_the_release_config_asks_for(tmp_path):
  """The official loader of OpenAI's weights builds QuickGELU (FACTS "CLIP")."""
  asked = golden.release(
    tmp_path / 'asked', 'llama_ens', 'llama_ens', load_pretrained_visual_encoder=True
  )
  assert sources.open_source(asked).settings.encoders.clip.activation == 'quick_gelu'
  assert sources.open_source(MODELS / 'llama_ens/mp1').settings.encoders.clip.activation == 'gelu'


def test_a_language_model_alone_from_metas_files(tmp_path):
  """Two key/value heads and halved positions; the rotary tables themselves are in tests/models/test_llama.py."""
  known = np.load(MODELS / 'llama_text_gqa_rope.npz')
  arrays = {key.removeprefix('w/'): known[key] for key in known if key.startswith('w/')}
  pth_writer.write_pth(
    tmp_path / 'consolidated.00.pth',
    {key: Tensor(x.shape, x.dtype, x.copy) for key, x in arrays.items()},
  )
  said = dict(
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
  (tmp_path / 'params.json').write_text(json.dumps(said))
  model = sphinx_jax.load(tmp_path)
  close(model.logits(known['tokens']), known['logits'], LOGITS)
  with pytest.raises(errors.SphinxError, match='weights without a tokenizer'):
    model.generate(['a'])


class Derived:
  """A variant whose forward is not recorded here, on the weights of one that is."""

  def __init__(self, name, folder):
    self.name, (weights, changes) = name, golden.DERIVED[name]
    self.folder = golden.release(folder, weights, name, **changes)
    rng, size = np.random.default_rng(7), {'llama_ens10': 672, 'llama_ens5_light': 1024}.get(name)
    known = golden.forward('llama_ens5')
    self.tokens = known['tokens'][:1]
    if size is None:  # A picture whose features are known.
      self.images = known['image_u8'][:1]
    else:  # Smooth, and with noise on it.
      waves = np.sin(np.arange(size)[:, None, None] / (31, 17, 57)) + np.cos(
        np.arange(size)[None, :, None] / (19, 41, 23)
      )
      self.images = (128 + 50 * waves + rng.integers(-20, 20, (size, size, 3))).astype(np.uint8)[
        None
      ]
    self.ours = golden.run(self.folder, self.tokens, self.images)
    self.views = len(self.ours.features['dinov2'])


@pytest.fixture(scope='module', params=golden.DERIVED)
def derived(request, tmp_path_factory):
  return Derived(request.param, tmp_path_factory.mktemp('release') / request.param)


def test_each_encoder_sees_the_views_of_the_facts(derived):
  """A bicubic global view, then squares row by row: of the picture itself where it has their size."""
  pixels = (derived.images[0].astype(np.float32) / np.float32(255) - golden.MEAN) / golden.STD
  half = pixels.astype(np.float16).astype(np.float64)
  size = {'convnext': 512} if derived.name == 'llama_ens5_light' else {}
  assert (
    set(derived.ours.views) == {'convnext', 'dinov2'}
    if size
    else {'clip', 'convnext', 'dinov2', 'qformer', 'blip_vit'}
  )
  for name, seen in derived.ours.views.items():
    view, grid = size.get(name, 224), 3 if derived.name == 'llama_ens10' else 2
    assert seen.shape == (1 + grid**2, view, view, 3)
    np.testing.assert_allclose(seen[0], golden.bicubic(half, view), rtol=0, atol=4e-3)
    np.testing.assert_array_equal(seen[0], seen[0].astype(np.float16).astype(np.float32))
    if len(pixels) == grid * view:
      np.testing.assert_array_equal(seen[1:], golden.crops(pixels, view))
    else:
      np.testing.assert_allclose(
        seen[1:], golden.crops(golden.bicubic(half, grid * view), view), rtol=0, atol=4e-3
      )
      np.testing.assert_array_equal(seen[1:], seen[1:].astype(np.float16).astype(np.float32))


def test_image_tokens_follow_from_the_features(derived):
  w, pool = golden.weights(derived.folder), derived.name == 'llama_ens5p2'
  assert derived.ours.image_tokens.shape == (1, golden.WORDS[derived.name], 64)
  close(
    golden.image_tokens(derived.ours.features, w, derived.views, pool),
    derived.ours.image_tokens[0],
    FEATURES,
  )
  if pool:  # Averages of features that are the official ones of this picture.
    known = golden.forward('llama_ens5')
    for name, every in (('clip', 3), ('dinov2', 3), ('qformer', 1)):
      close(derived.ours.features[name][:, ::every], known[name][::2], FEATURES)


def test_logits_follow_from_the_image_tokens(derived):
  """Rotary base, scaling and the norm's epsilon are the variant's own."""
  w, said = golden.weights(derived.folder), golden.config(derived.folder)
  want = golden.logits(derived.tokens[0], derived.ours.image_tokens[0], w, said)
  close(derived.ours.logits[0], want, LOGITS)
