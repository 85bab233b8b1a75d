"""InternLM 1 and 2: a LLaMA packed in their layouts is read as the same model."""

import json

import numpy as np
import pytest

from sphinx_jax import convert
from sphinx_jax.checkpoint.foreign import assemble, safetensors
from sphinx_jax.core import errors
from sphinx_jax.generate import load
from tests import release
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA

LAYER = 'model.layers.{}.'


@pytest.fixture(scope='module')
def llama():
  """Config and tensors of a LLaMA of HF transformers."""
  tensors = safetensors.open_safetensors(GOLDEN / LLAMA)
  config = json.loads((GOLDEN / LLAMA / 'config.json').read_text())
  return config, {key: tensor.read() for key, tensor in tensors.items()}


def write(folder, tensors, config):
  folder.mkdir()
  safetensors.write_safetensors(folder, release.as_tensors(tensors))
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def internlm2(llama):
  config, w = llama
  heads, kv_heads = config['num_attention_heads'], config['num_key_value_heads']
  width = config['hidden_size'] // heads
  tensors = {
    'model.tok_embeddings.weight': w['model.embed_tokens.weight'],
    'model.norm.weight': w['model.norm.weight'],
    'output.weight': w['lm_head.weight'],
  }
  for i in range(config['num_hidden_layers']):
    of = lambda name, layer=i: w[f'{LAYER.format(layer)}{name}.weight']
    q, k, v = (of(f'self_attn.{name}_proj').reshape(-1, width, heads * width) for name in 'qkv')
    ratio, packed = heads // kv_heads, []
    for head in range(kv_heads):
      packed += [*q[head * ratio : (head + 1) * ratio], k[head], v[head]]
    names = {
      'attention.wqkv': np.concatenate(packed),
      'attention.wo': of('self_attn.o_proj'),
      'attention_norm': of('input_layernorm'),
      'ffn_norm': of('post_attention_layernorm'),
      'feed_forward.w1': of('mlp.gate_proj'),
      'feed_forward.w3': of('mlp.up_proj'),
      'feed_forward.w2': of('mlp.down_proj'),
    }
    tensors |= {f'{LAYER.format(i)}{name}.weight': x for name, x in names.items()}
  kind = dict(
    model_type='internlm2',
    architectures=['InternLM2ForCausalLM'],
    auto_map={'AutoModel': 'modeling_internlm2.InternLM2ForCausalLM'},
    bias=False,
  )
  return tensors, config | kind


def internlm(llama):
  """With biases, and as many key/value heads as heads."""
  config, w = llama
  rng, size = np.random.default_rng(0), config['hidden_size']
  repeat = config['num_attention_heads'] // config['num_key_value_heads']
  width = size // config['num_attention_heads']
  wide = lambda x: x.reshape(-1, width, size).repeat(repeat, axis=0).reshape(size, size)
  tensors = {
    'embedding.weight': w['model.embed_tokens.weight'],
    'norm.weight': w['model.norm.weight'],
    'head.weight': w['lm_head.weight'],
  }
  for i in range(config['num_hidden_layers']):
    of = lambda name, layer=i: w[f'{LAYER.format(layer)}{name}.weight']
    q, k, v = of('self_attn.q_proj'), wide(of('self_attn.k_proj')), wide(of('self_attn.v_proj'))
    names = {
      'mixer.Wqkv.weight': np.concatenate([q, k, v]),
      'mixer.Wqkv.bias': rng.normal(size=3 * size).astype(np.float32),
      'mixer.out_proj.weight': of('self_attn.o_proj'),
      'mixer.out_proj.bias': rng.normal(size=size).astype(np.float32),
      'norm1.weight': of('input_layernorm'),
      'norm2.weight': of('post_attention_layernorm'),
      'mlp.w1.weight': of('mlp.gate_proj'),
      'mlp.w2.weight': of('mlp.up_proj'),
      'mlp.w3.weight': of('mlp.down_proj'),
    }
    tensors |= {f'layers.{i}.{name}': x for name, x in names.items()}
  sizes = dict(
    num_layers=config['num_hidden_layers'],
    hidden_size=size,
    num_attention_heads=config['num_attention_heads'],
    vocab_size=config['vocab_size'],
    layer_norm_epsilon=config['rms_norm_eps'],
    norm_type='rmsnorm',
  )
  return tensors, sizes


def read(folder):
  arrays = assemble.arrays(convert.open_sources([str(folder)]))
  return {path: array.read(()) for path, array in arrays.items()}


def test_internlm2_is_the_llama_that_it_packs(llama, tmp_path):
  folder = write(tmp_path / 'folder', *internlm2(llama))
  found, expected = read(folder), read(GOLDEN / LLAMA)
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)
  settings = [convert.open_sources([str(place)]).config for place in (folder, GOLDEN / LLAMA)]
  assert settings[0] == settings[1]


def test_internlm_has_biases_and_goes_to_transformers_as_a_llama(llama, tmp_path):
  import torch
  import transformers

  folder = write(tmp_path / 'folder', *internlm(llama))
  assembly = convert.open_sources([str(folder)], tokenizer=str(release.TOKENIZER))
  assert assembly.config.llm.attention_bias
  convert.import_checkpoint(assembly, tmp_path / 'ours')
  convert.export_checkpoint(tmp_path / 'ours', tmp_path / 'hf', 'hf')
  model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'hf', dtype=torch.float32)
  tokens = np.random.default_rng(1).integers(3, 500, (2, 9))
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits.numpy()
  for place in (folder, tmp_path / 'ours', tmp_path / 'hf'):
    logits = load.load_model(place, dtype='float32').logits(tokens)
    np.testing.assert_allclose(logits, expected, atol=2e-4, err_msg=str(place))


@pytest.mark.parametrize(
  'kind, changes, words',
  [
    (internlm, {'norm_type': 'layernorm'}, "norm_type 'layernorm'"),
    (internlm, {'apply_post_layer_norm': True}, 'apply_post_layer_norm True'),
    (internlm2, {'bias': True}, 'bias True'),
    (internlm2, {'num_key_value_heads': 3}, 'num_key_value_heads 3'),
  ],
)
def test_what_is_not_computed_is_refused(llama, tmp_path, kind, changes, words):
  tensors, config = kind(llama)
  folder = write(tmp_path / 'folder', tensors, config | changes)
  with pytest.raises(errors.SphinxError, match=words):
    convert.open_sources([str(folder)])
