"""Names and shapes against golden files of the libraries (tests/golden/foreign/make.py)."""

import functools
import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import convert
from sphinx_jax.checkpoint.foreign import safetensors, sources
from sphinx_jax.core import trees
from sphinx_jax.models import families, pixels, sphinx
from sphinx_jax.models.encoders import clip as clip_encoder
from tests.checkpoint.foreign import recorded
from tests.checkpoint.foreign.recorded import (
  FIRST,
  GOLDEN,
  LLAMA,
  META,
  OPENAI,
  OUTPUTS,
  SECOND,
  SHARDED,
  TOKENIZER,
  parameters,
  parts,
)


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
  """Whether the bits are equal; half precision and float32 are compared by their numbers."""

  def same(x, y):
    if x.dtype != y.dtype:
      x, y = x.astype(np.float32), y.astype(np.float32)
    return x.shape == y.shape and x.tobytes() == y.tobytes()

  return a.keys() == b.keys() and all(same(a[path], b[path]) for path in a)


@pytest.mark.parametrize(
  'name, part, form, kind',
  [
    (LLAMA, 'llm', 'hf', 'LLaMA of HF transformers'),
    (SHARDED, 'llm', 'hf', 'LLaMA of HF transformers'),
    (META, 'llm', 'meta', 'LLaMA as Meta names it'),
    ('clip_hf', 'clip', 'hf', 'CLIP of HF transformers'),
    ('clip_open_clip.bin', 'clip', 'open_clip', 'CLIP of OpenAI or open_clip'),
    ('clip_openai.pt', 'clip', 'open_clip', 'CLIP of OpenAI or open_clip'),
    ('convnext_timm', 'convnext', 'timm', 'ConvNeXt of timm or open_clip'),
    ('convnext_open_clip.bin', 'convnext', 'timm', 'ConvNeXt of timm or open_clip'),
    ('dinov2_hf', 'dinov2', 'hf', 'DINOv2 of HF transformers'),
    ('dinov2_original.pth', 'dinov2', 'original', 'DINOv2, original'),
    ('blip2_hf', 'qformer', 'hf', 'BLIP-2 of HF transformers'),
  ],
)
def test_every_form_is_detected(name, part, form, kind):
  source = sources.open_source(GOLDEN / name)
  assert (source.part, source.form, source.kind) == (part, form, kind)


def assert_close(found, name):
  np.testing.assert_allclose(found, OUTPUTS[name], atol=5e-5, rtol=0)


def test_features_are_those_of_the_libraries():
  config = parts(LLAMA, *FIRST).config.copy_and_resolve_references()
  config.half_round, config.dtype = False, 'float32'  # Without the official code's rounding.
  encoders = trees.unflatten(parameters(LLAMA, *FIRST))['encoders']
  images = pixels.normalize(OUTPUTS['picture'][None], sphinx.MEAN, sphinx.STD)
  model = sphinx.Encoders(ml_collections.FrozenConfigDict(config))
  queries, (mixed,) = jax.jit(lambda params: model.apply({'params': params}, images))(encoders)
  clip, convnext, dinov2 = np.split(mixed[0, 0], (32, 64), axis=-1)
  assert_close(queries[0, 0], 'blip2_queries')
  assert_close(clip, 'clip_quick_gelu')
  assert_close(dinov2, 'dinov2')
  # 8 x 8 cells, repeated to 16 x 16. Their mean is the class token
  # (docs/official_sphinx.md, "ConvNeXt").
  cells = convnext[1:].reshape(8, 2, 8, 2, 32)
  assert_close(cells[:, 0, :, 0], 'convnext')
  assert (cells == cells[:, :1, :, :1]).all()
  np.testing.assert_allclose(convnext[0], OUTPUTS['convnext'].mean((0, 1)), atol=5e-5, rtol=0)


def test_clip_of_open_clip_has_the_exact_gelu():
  params = trees.unflatten(parameters(LLAMA, *SECOND))['encoders']['clip']
  module = clip_encoder.Clip(**parts(LLAMA, *SECOND).config.encoders.clip)
  images = pixels.normalize(OUTPUTS['picture'][None], sphinx.MEAN, sphinx.STD)
  cls, grid = jax.jit(lambda params: module.apply({'params': params}, images))(params)
  assert_close(np.concatenate([cls, grid.reshape(256, 32)]), 'clip_gelu')


def test_all_forms_of_an_encoder_give_the_same_parameters():
  first = parameters(LLAMA, *FIRST)
  assert equal(first, parameters(LLAMA, *SECOND))
  assert equal(first, parameters(LLAMA, *OPENAI))


def test_openais_archive_has_quick_gelu_and_mixed_dtypes():
  assert parts(LLAMA, *OPENAI).config.encoders == parts(LLAMA, *FIRST).config.encoders
  found = parameters(LLAMA, *OPENAI)
  assert found['encoders/clip/patch/kernel'].dtype == np.float16
  assert found['encoders/clip/norm_pre/scale'].dtype == np.float32


@pytest.mark.parametrize(
  'name, logits', [(LLAMA, 'llama_scaled_logits'), (SHARDED, 'llama_logits')]
)
def test_logits_of_llama_are_those_of_transformers(name, logits):
  found = sphinx_jax.load(GOLDEN / name, dtype='float32').logits(OUTPUTS['llama_tokens'])
  np.testing.assert_allclose(found, OUTPUTS[logits], atol=1e-4, rtol=0)


def plain_logits(folder, tokens, window):
  """Mistral as transformers names it, written out in float64 for one row of ids."""
  weight = {
    name.removeprefix('model.'): tensor.read().astype(np.float64)
    for name, tensor in safetensors.open_safetensors(folder).items()
  }
  config = json.loads((folder / 'config.json').read_text())
  heads, kv_heads, rope = (
    config[name] for name in ('num_attention_heads', 'num_key_value_heads', 'rope_parameters')
  )
  at = np.arange(len(tokens))
  distance = at[:, None] - at
  mask = (distance >= 0) & (distance < window)
  width = config['hidden_size'] // heads
  angles = at[:, None] / rope['factor'] * rope['rope_theta'] ** -(np.arange(0, width, 2) / width)
  cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

  def norm(x, name):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config['rms_norm_eps']) * weight[name]

  def rotated(x):
    first, second = np.split(x, 2, -1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

  x = weight['embed_tokens.weight'][tokens]
  for layer in (f'layers.{i}.' for i in range(config['num_hidden_layers'])):
    project = lambda x, name: x @ weight[f'{layer}{name}_proj.weight'].T  # noqa: B023
    inputs = norm(x, f'{layer}input_layernorm.weight')
    q, k, v = (project(inputs, f'self_attn.{n}').reshape(len(at), -1, width) for n in 'qkv')
    k, v = (array.repeat(heads // kv_heads, axis=1) for array in (rotated(k), v))
    scores = np.einsum('thc,shc->hts', rotated(q), k) / width**0.5
    scores = np.exp(np.where(mask, scores, -np.inf))
    attended = np.einsum('hts,shc->thc', scores / scores.sum(-1, keepdims=True), v)
    x = x + project(attended.reshape(len(at), -1), 'self_attn.o')
    inputs = norm(x, f'{layer}post_attention_layernorm.weight')
    gate = project(inputs, 'mlp.gate')
    x = x + project(gate / (1 + np.exp(-gate)) * project(inputs, 'mlp.up'), 'mlp.down')
  return norm(x, 'norm.weight') @ weight['lm_head.weight'].T


@pytest.mark.parametrize('window', [4, 4096])
def test_a_mistral_sees_its_window_alone(window, tmp_path):
  """In whole sequences and over a cache, also after a conversion there and back."""
  changes = dict(model_type='mistral', architectures=['MistralForCausalLM'], sliding_window=window)
  folder = recorded.edited(tmp_path / 'mistral', LLAMA, max_position_embeddings=8192, **changes)
  tokens = OUTPUTS['llama_tokens']
  want = plain_logits(folder, tokens[0], window)
  assert (abs(want - OUTPUTS['llama_scaled_logits'][0]).max() > 0.1) == (window == 4)
  convert.import_checkpoint(
    convert.open_sources([str(folder)], tokenizer=str(TOKENIZER)), tmp_path / 'ours'
  )
  model = sphinx_jax.load(tmp_path / 'ours', dtype='float32')
  np.testing.assert_allclose(model.logits(tokens)[0], want, atol=1e-4, rtol=0)
  if window == 4:
    np.testing.assert_allclose(cached_logits(model, tokens, 5)[0], want[4:], atol=1e-4, rtol=0)
  convert.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'back'), 'hf')
  before, after = ((f / 'config.json').read_text() for f in (folder, tmp_path / 'back'))
  assert json.loads(after) == json.loads(before)


def cached_logits(model, tokens, prompt):
  """Logits from the last token of a prompt on, token by token over a cache."""
  module, found = families.build(model.config), []
  cache = families.init_cache(model.config, 1, tokens.shape[1])
  decode = jax.jit(functools.partial(module.apply, method='decode'))
  for begin, end in [(0, prompt), *((i, i + 1) for i in range(prompt, tokens.shape[1]))]:
    ids = tokens[:, begin:end]
    positions = np.arange(begin, end)[None]
    logits, cache = decode(
      {'params': model.params}, ids, np.full_like(ids, -1), positions, None, cache
    )
    found.append(logits[:, -1:])
  return np.concatenate(found, axis=1)


def test_meta_and_huggingface_give_the_same_parameters():
  assert equal(parameters(META), parameters(LLAMA))
  assert parts(META).config.llm.vocab == 512  # Its params.json has -1.
  assert list(parts(META).unused) == ['rope.freqs']


def test_configs_of_older_transformers_give_the_same_settings(tmp_path):
  old = recorded.edited(
    tmp_path / 'old',
    LLAMA,
    remove=('rope_parameters',),
    rope_theta=5000.0,
    rope_scaling={'type': 'linear', 'factor': 2.0},
  )
  assert sources.open_source(old).settings == sources.open_source(GOLDEN / LLAMA).settings
  plain = recorded.edited(
    tmp_path / 'plain',
    SHARDED,
    remove=('rope_parameters', 'num_key_value_heads'),
    rope_scaling=None,
  )
  assert sources.open_source(plain).settings == sources.open_source(GOLDEN / SHARDED).settings


def test_the_config_of_clip_may_leave_out_defaults(tmp_path):
  vision = json.loads((GOLDEN / 'clip_hf' / 'config.json').read_text())['vision_config']
  del vision['hidden_act']
  default = recorded.edited(tmp_path / 'default', 'clip_hf', vision_config=vision)
  assert sources.open_source(default).settings['activation'] == 'quick_gelu'
  explicit = recorded.edited(
    tmp_path / 'explicit', 'clip_hf', vision_config=vision | {'hidden_act': 'gelu'}
  )
  assert sources.open_source(explicit).settings['activation'] == 'gelu'


def test_the_vision_half_of_clip_saved_alone_has_no_prefix(tmp_path):
  whole = sources.open_source(GOLDEN / 'clip_hf')
  safetensors.write_safetensors(tmp_path, whole.tensors)
  (tmp_path / 'config.json').write_text(json.dumps(whole.config['vision_config']))
  alone = sources.open_source(tmp_path)
  assert (alone.kind, alone.settings, alone.prefix, whole.prefix) == (
    whole.kind,
    whole.settings,
    '',
    'vision_model.',
  )


@pytest.mark.parametrize('file', [SECOND[0], OPENAI[0], FIRST[2]])
def test_heads_do_not_come_from_another_models_config_in_the_folder(tmp_path, file):
  shutil.copy(GOLDEN / file, tmp_path / file)
  (tmp_path / 'config.json').write_text(
    json.dumps({'hidden_size': 5120, 'num_attention_heads': 40, 'hidden_act': 'silu'})
  )
  assert (
    sources.open_source(tmp_path / file).settings == sources.open_source(GOLDEN / file).settings
  )
