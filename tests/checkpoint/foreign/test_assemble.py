"""A model from files of several libraries: round trips, the start of stage 1, and refusals."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import convert
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import assemble, safetensors, sources
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.models import families
from tests.checkpoint.foreign.recorded import (
  FIRST,
  GOLDEN,
  LLAMA,
  META,
  OUTPUTS,
  SHARDED,
  TOKENIZER,
  edited,
  parts,
)

_CONVNEXT, _DINOV2 = 'convnext_open_clip.bin', 'dinov2_hf'


def paths(*names):
  return [str(GOLDEN / name) for name in names]


def contents(folder):
  opened = safetensors.open_safetensors(folder)
  return {
    key: (tensor.shape, tensor.dtype, tensor.read().tobytes()) for key, tensor in opened.items()
  }


@pytest.mark.parametrize('name', [LLAMA, META])
def test_llama_is_exported_to_huggingface_byte_for_byte(name, tmp_path):
  """The rotary order of Meta and back; Meta's file has the same weights."""
  assembly = convert.open_sources(paths(name), tokenizer=str(TOKENIZER))
  convert.import_checkpoint(assembly, tmp_path / 'ours')
  convert.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'back'), 'hf')
  assert contents(tmp_path / 'back') == contents(GOLDEN / LLAMA)
  wrote, config = (
    json.loads((folder / 'config.json').read_text())
    for folder in (tmp_path / 'back', GOLDEN / LLAMA)
  )
  if name == LLAMA:
    assert wrote == config
    found = sphinx_jax.load(tmp_path / 'ours', dtype='float32').logits(OUTPUTS['llama_tokens'])
    np.testing.assert_allclose(found, OUTPUTS['llama_scaled_logits'], atol=1e-4, rtol=0)
  else:  # The settings that Meta's params.json has too.
    same = (
      'hidden_size',
      'intermediate_size',
      'num_attention_heads',
      'num_key_value_heads',
      'num_hidden_layers',
      'rms_norm_eps',
      'vocab_size',
      'tie_word_embeddings',
      'architectures',
    )
    assert {key: wrote[key] for key in same} == {key: config[key] for key in same}


def test_separate_parts_are_a_checkpoint_that_training_starts_from(tmp_path):
  assembly = convert.open_sources(
    paths(LLAMA, _CONVNEXT, _DINOV2), 'llama_ens_light', tokenizer=str(TOKENIZER)
  )
  convert.import_checkpoint(assembly, tmp_path, seed=3)
  config = config_lib.from_json(store.load_meta(tmp_path)['config']).model
  assert config.to_dict() == assembly.config.to_dict() and config.image_size == 512
  store.check(tmp_path, families.abstract_params(config))
  saved, read = trees.flatten(store.load_params(tmp_path)), assemble.arrays(assembly)
  fresh = saved.keys() - read.keys()
  projection = {
    f'visual_proj/{name}' for name in ('linear/kernel', 'linear/bias', 'norm/scale', 'norm/bias')
  }
  assert fresh == {'start_img', 'end_img'} | projection
  # Only these: a program for all parameters compiles for half a minute.
  drawn = jax.jit(
    lambda rng: {path: trees.flatten(families.init(config, rng))[path] for path in fresh}
  )(jax.random.key(3))
  assert all(np.array_equal(saved[path], drawn[path]) for path in fresh)
  assert all(
    np.asarray(saved[path]).tobytes() == array.read(()).tobytes() for path, array in read.items()
  )


def test_with_all_encoders_both_projections_are_fresh():
  projections = {path.split('/')[0] for path in parts(LLAMA, *FIRST).fresh}
  assert projections == {'visual_proj', 'qformer_proj', 'start_img', 'end_img'}


def test_without_encoders_nothing_is_fresh():
  assert parts(LLAMA).fresh == () and not parts(LLAMA).config.encoders


@pytest.mark.parametrize(
  'names, variant, message',
  [
    ((LLAMA, *FIRST[:3]), 'llama_ens', 'give the weights of qformer too'),
    ((LLAMA, _CONVNEXT), 'llama_ens_light', 'give the weights of dinov2 too'),
    (
      (LLAMA, *FIRST),
      'llama_ens_light',
      'weights of clip, qformer, expected its encoders, convnext, dinov2',
    ),
    ((LLAMA, *FIRST, _DINOV2), 'llama_ens', 'each once'),
    ((LLAMA, META, _CONVNEXT, _DINOV2), 'llama_ens_light', 'each once'),
    (FIRST, 'llama_ens', 'add the language model'),
    ((_CONVNEXT,), 'llama_ens', 'add the language model'),
    ((LLAMA, *FIRST), 'llama_ens_lite', "did you mean 'llama_ens_light'"),
  ],
)
def test_parts_that_make_no_model_are_refused(names, variant, message):
  with pytest.raises(errors.SphinxError, match=message):
    convert.open_sources(paths(*names), variant)


def test_a_tokenizer_of_another_vocabulary_is_refused():
  with pytest.raises(
    errors.SphinxError, match='a tokenizer of 512 tokens, expected the 64 of the embedding'
  ):
    convert.open_sources(paths(SHARDED), tokenizer=str(TOKENIZER))


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      dict(rope_parameters={'rope_type': 'llama3', 'factor': 8.0}),
      "rope type 'llama3', expected 'default' or 'linear'",
    ),
    (
      dict(rope_parameters=None, rope_scaling={'type': 'dynamic', 'factor': 2.0}),
      "rope type 'dynamic'",
    ),
    (dict(rope_parameters={'rope_type': 'linear'}), "no 'factor'"),
    (dict(num_attention_heads=None), "no 'num_attention_heads'"),
    (dict(num_hidden_layers=3), 'missing model.layers.2.self_attn.q_proj.weight'),
    (dict(num_hidden_layers=1), 'left over model.layers.1.self_attn.q_proj.weight'),
    (dict(num_key_value_heads=4), r'k_proj.weight: shape \(16, 32\), expected \(32, 32\)'),
    (dict(intermediate_size=96), r'gate_proj.weight: shape \(88, 32\), expected \(96, 32\)'),
  ],
)
def test_a_config_that_does_not_fit_its_tensors_is_refused(tmp_path, changes, message):
  with pytest.raises(errors.SphinxError, match=message):
    convert.open_sources([str(edited(tmp_path / 'edited', LLAMA, **changes))])


def tensor(*shape, dtype=np.float16):
  return Tensor(shape, np.dtype(dtype), lambda: np.zeros(shape, dtype))


def rewritten(folder, name, drop=(), **add):
  """A copy of a safetensors folder with other tensors."""
  kept = {
    key: value
    for key, value in safetensors.open_safetensors(GOLDEN / name).items()
    if key not in drop
  }
  safetensors.write_safetensors(folder, kept | add)
  shutil.copy(GOLDEN / name / 'config.json', folder)
  return str(folder)


@pytest.mark.parametrize(
  'name, add, message',
  [
    (
      LLAMA,
      {'model.layers.0.self_attn.q_proj.bias': (32,)},
      'LLaMA.*1 tensors that it does not have.*q_proj.bias',
    ),
    (_DINOV2, {'embeddings.register_tokens': (1, 4, 48)}, 'DINOv2.*embeddings.register_tokens'),
    (
      'blip2_hf',
      {'vision_model.embeddings.patch_embedding.gain': (32,)},
      'BLIP-2.*patch_embedding.gain',
    ),
  ],
)
def test_tensors_of_another_architecture_are_refused(tmp_path, name, add, message):
  with pytest.raises(errors.SphinxError, match=message):
    sources.open_source(
      rewritten(tmp_path, name, **{key: tensor(*shape) for key, shape in add.items()})
    )


def test_tied_embeddings_are_refused(tmp_path):
  folder = rewritten(tmp_path, LLAMA, drop=('lm_head.weight',))
  with pytest.raises(errors.SphinxError, match='missing lm_head.weight'):
    convert.open_sources([folder])
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(config | {'tie_word_embeddings': True}))
  with pytest.raises(
    errors.SphinxError, match='tied embeddings.*a separate output, lm_head.weight'
  ):
    convert.open_sources([folder])


def test_layers_of_different_dtypes_are_refused(tmp_path):
  add = {'model.layers.1.mlp.up_proj.weight': tensor(88, 32, dtype=ml_dtypes.bfloat16)}
  with pytest.raises(errors.SphinxError, match='up_proj.weight: layers of bfloat16 and float16'):
    convert.open_sources([rewritten(tmp_path, LLAMA, **add)])


def test_heads_of_an_unknown_width_are_asked_for(tmp_path):
  safetensors.write_safetensors(
    tmp_path,
    {
      'visual.conv1.weight': tensor(40, 3, 14, 14),
      'visual.positional_embedding': tensor(257, 40),
      'visual.transformer.resblocks.0.mlp.c_fc.weight': tensor(160, 40),
    },
  )
  with pytest.raises(
    errors.SphinxError,
    match=r'clip: got width 40, whose number of heads no tensor determines.*\[32, 1024\]',
  ):
    sources.open_source(tmp_path)


@pytest.mark.parametrize(
  'tensors, message',
  [
    ({'encoder.weight': (3, 3)}, 'no known form .encoder.weight'),
    # DINOv2's smaller models have no gate in their feed-forward.
    (
      {
        'patch_embed.proj.weight': (48, 3, 14, 14),
        'pos_embed': (1, 257, 48),
        'blocks.0.mlp.fc1.weight': (192, 48),
      },
      'DINOv2.*no tensor .blocks.0.mlp.w3.weight',
    ),
    ({'tok_embeddings.weight': (512, 32)}, "no such file, expected 'n_heads'"),
    # timm's ConvNeXt-Base has another EPS than xxlarge, and no tensor tells.
    ({'stem.0.weight': (128, 3, 4, 4)}, 'a stem of width 128, expected 384'),
    ({'stem.0.weight': (8, 3, 4, 4)}, "ConvNeXt.*no tensor 'stages.0.blocks.0.gamma'"),
  ],
)
def test_files_of_no_known_form_are_refused(tmp_path, tensors, message):
  safetensors.write_safetensors(tmp_path, {key: tensor(*shape) for key, shape in tensors.items()})
  with pytest.raises(errors.SphinxError, match=message):
    sources.open_source(tmp_path)
