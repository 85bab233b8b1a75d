"""Folders as users have them: other architectures, quantized weights, wrappers, leftovers."""

import codecs
import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch

from sphinx_jax import convert
from sphinx_jax.checkpoint.foreign import assemble, names, pth_writer, safetensors, sources
from sphinx_jax.core import config as config_lib, errors, progress
from tests import release
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA, TOKENIZER, edited
from tests.checkpoint.foreign.test_assemble import rewritten, tensor

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n'
LINEAR = {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 5000.0}


def model(name: str, **more) -> dict:
  return {'model_type': name.lower(), 'architectures': [f'{name}ForCausalLM'], **more}


def refused(path, **options) -> str:
  with pytest.raises(errors.SphinxError) as caught:
    convert.open_sources([str(path)], **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      model('Granite', embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0),
      ["model_type 'granite'", 'GraniteForCausalLM', 'embedding_multiplier 12.0'],
    ),
    (model('Gemma', hidden_act='gelu'), ["'gemma'"]),
    (model('Gemma2', final_logit_softcapping=30.0), ["'gemma2'", 'final_logit_softcapping 30.0']),
    (model('Qwen2', use_sliding_window=False), ["'qwen2'"]),
    (model('Phi3'), ["'phi3'"]),
    (model('Mixtral', num_local_experts=8), ["'mixtral'", 'num_local_experts 8']),
    ({'architectures': ['LlamaForSequenceClassification']}, ['LlamaForSequenceClassification']),
    ({'model_type': None, 'architectures': None}, ['no model_type or architectures']),
    ({'hidden_act': 'gelu'}, ["hidden_act 'gelu'"]),
    ({'attention_bias': True}, ['missing model.layers.0.self_attn.q_proj.bias']),
    ({'mlp_bias': True}, ['mlp_bias True']),
    ({'head_dim': 16}, ['head_dim 16 (computed: 8)']),
    ({'partial_rotary_factor': 0.5}, ['partial_rotary_factor 0.5']),
    ({'tie_word_embeddings': True}, ['tie_word_embeddings', 'lm_head.weight']),
    ({'quantization_config': {'quant_method': 'gptq'}}, ["quantization_config {'quant_method'"]),
    ({'auto_map': {'AutoModel': 'modeling_x.Model'}}, ['auto_map']),
    ({'layer_types': ['full_attention', 'sliding_attention']}, ['layer_types']),
    ({'scale_emb': 12}, ['scale_emb 12 (an unknown field)']),
    ({'sliding_window': 16}, ['sliding_window 16 of a LLaMA', '2048 positions']),
    ({'sliding_window': 'no'}, ["sliding_window 'no'"]),
    ({'num_key_value_heads': 3}, ['num_key_value_heads 3', 'a divisor of 4']),
    ({'rms_norm_eps': 'small'}, ["rms_norm_eps 'small'"]),
    ({'rope_parameters': [2.0]}, ['rope_parameters [2.0]']),
    ({'rope_parameters': LINEAR | {'factor': 0}}, ['factor 0']),
    ({'rope_parameters': LINEAR | {'mrope_section': [1]}}, ['mrope_section']),
    ({'rope_parameters': LINEAR | {'type': 'yarn'}}, ["rope_type 'linear' and type 'yarn'"]),
    ({'rope_theta': 10000.0}, ['rope_theta 10000.0 and rope_parameters.rope_theta 5000.0']),
    *(
      ({'rope_parameters': LINEAR | {'rope_type': kind}}, [f"rope type '{kind}'"])
      for kind in ('yarn', 'llama3', 'longrope', 'dynamic', 'proportional', ['linear'])
    ),
  ],
)
def test_a_config_of_another_model_is_refused_by_name(tmp_path, changes, words):
  message = refused(edited(tmp_path / 'edited', LLAMA, **changes))
  assert all(word in message for word in words), message


@pytest.mark.parametrize('given, window', [({}, 4096), ({'sliding_window': 16}, 16)])
def test_a_mistral_has_a_window_of_its_own_or_the_default(tmp_path, given, window):
  changes = model('Mistral', max_position_embeddings=32768, **given)
  found = sources.open_source(edited(tmp_path / 'edited', LLAMA, **changes))
  plain = sources.open_source(GOLDEN / LLAMA).settings
  assert found.settings == plain | {'window': window, 'max_length': 32768}


@pytest.mark.parametrize(
  'changes',
  [
    model('Mistral', sliding_window=None),
    model('Mistral', sliding_window=2048),
    {'hidden_act': 'swish', 'layer_types': ['full_attention'] * 2, 'pretraining_tp': 2},
    {'_name_or_path': 'x', 'torch_dtype': 'float16', 'attention_dropout': 0.1, 'use_cache': False},
    {'rope_parameters': LINEAR | {'type': 'linear', 'original_max_position_embeddings': 1024}},
    {'model_type': None, 'pad_token_id': -1, 'eos_token_id': [2, 7], 'quantization_config': None},
  ],
)
def test_neutral_fields_change_nothing(tmp_path, changes):
  found = sources.open_source(edited(tmp_path / 'edited', LLAMA, **changes))
  assert found.settings == sources.open_source(GOLDEN / LLAMA).settings


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int32])
def test_weights_of_whole_numbers_are_refused(tmp_path, dtype):
  add = {'model.layers.1.mlp.up_proj.weight': tensor(88, 32, dtype=dtype)}
  message = refused(rewritten(tmp_path, LLAMA, **add))
  assert f'quantized weights ({np.dtype(dtype)}: model.layers.1.mlp.up_proj' in message


@pytest.mark.parametrize(
  'name',
  ['q_proj.weight_scale', 'q_proj.SCB', 'q_proj.qweight', 'q_proj.weight.absmax', 'k_proj.scales'],
)
def test_scales_and_packed_numbers_are_refused(tmp_path, name):
  add = {f'model.layers.0.self_attn.{name}': tensor(32)}
  message = refused(rewritten(tmp_path, LLAMA, **add))
  assert 'quantized weights' in message and name in message


def test_quantized_tensors_of_torch_are_refused(tmp_path):
  for weight in (
    torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    torch.ones(2).to(torch.float8_e4m3fn),
  ):
    torch.save({'model.embed_tokens.weight': weight}, tmp_path / 'pytorch_model.bin')
    assert 'quantized weights' in refused(tmp_path)


def test_other_tensors_in_an_official_folder_are_refused(tmp_path):
  arrays = release.tensors(release.official_shapes(), np.float16)
  for name, words in (
    ('llma.layers.0.attention.wq.bias', 'wq.bias'),
    ('llma.dinov2_vitg14.register_tokens', 'dinov2_vitg14.register_tokens'),
    ('llma.layers.0.attention.lora_wq_a.weight', 'LoRA'),
    ('llma.layers.0.attention.wq.scales', 'quantized'),
  ):
    extra = arrays | {name: np.ones(16, np.float16)}
    assert words in refused(release.write_official(tmp_path, extra))


def test_fields_of_an_official_config_are_checked(tmp_path):
  arrays = release.tensors(release.official_shapes(), np.float16)
  for changes, words in (
    ({'moe': {'num_experts': 8}}, 'moe'),
    ({'use_scaled_rope': True, 'rope_theta': 500000.0}, 'use_scaled_rope, beside rope_theta 5000'),
    ({'load_pretrained_visual_encoder': 'false'}, "load_pretrained_visual_encoder 'false'"),
    ({'n_kv_heads': 3}, 'n_kv_heads 3'),
  ):
    folder = release.write_official(tmp_path, arrays, config=release.CONFIG | changes)
    assert words in refused(folder)


def test_an_exported_config_must_agree_with_the_files_beside_it(tmp_path):
  folder = release.write_official(tmp_path, release.tensors(release.official_shapes(), np.float16))
  whole = config_lib.to_dict(convert.open_sources([folder]).config)
  (folder / sources.SIDECAR).write_text(json.dumps(whole))
  assert config_lib.to_dict(convert.open_sources([folder]).config) == whole
  (folder / 'config.json').write_text(json.dumps(release.CONFIG | {'norm_eps': 1e-6}))
  assert 'llm.norm_eps: 1e-06 there, 1e-05 here' in refused(folder)
  (folder / sources.SIDECAR).write_text('{"llm": 3}')
  assert sources.SIDECAR in refused(folder)


def grown(folder, rows: int):
  """A copy of LLaMA with more rows in the embedding and the output."""
  add = {name: tensor(rows, 32) for name in ('model.embed_tokens.weight', 'lm_head.weight')}
  rewritten(folder, LLAMA, **add)
  config = json.loads((folder / 'config.json').read_text()) | {'vocab_size': rows}
  (folder / 'config.json').write_text(json.dumps(config))
  shutil.copy(TOKENIZER, folder)
  return config


def test_a_token_more_is_taken_with_a_note_and_exported(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(progress.log, 'propagate', True)
  caplog.set_level('INFO', logger=progress.log.name)
  grown(tmp_path, 513)
  (tmp_path / 'added_tokens.json').write_text('{"[PAD]": 512, "<s>": 1}')
  assembly = convert.open_sources([tmp_path])
  assert assembly.config.llm.vocab == 513 and 'beyond the tokenizer: 1 ([PAD])' in caplog.text
  convert.import_checkpoint(assembly, tmp_path / 'ours')
  convert.export_checkpoint(tmp_path / 'ours', tmp_path / 'back', 'hf')
  assert json.loads((tmp_path / 'back' / 'added_tokens.json').read_text()) == {'[PAD]': 512}
  assert convert.open_sources([tmp_path / 'back']).config == assembly.config


def test_rows_that_nothing_explains_are_refused(tmp_path):
  config = grown(tmp_path, 514)
  assert 'a tokenizer of 512 tokens, expected the 514' in refused(tmp_path)
  (tmp_path / 'added_tokens.json').write_text('{"<pad>": 512}')
  assert 'added_tokens.json that names every row' in refused(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(config | {'pad_token_id': 513}))
  assert convert.open_sources([tmp_path]).config.llm.vocab == 514
  (tmp_path / 'added_tokens.json').unlink()
  decoder = {'512': {'content': '<image>'}, '513': {'content': '<pad>'}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'added_tokens_decoder': decoder}))
  assert convert.open_sources([tmp_path]).config.llm.vocab == 514
  (tmp_path / 'tokenizer_config.json').unlink()
  added = [{'id': 512, 'content': '<image>'}, {'id': 513, 'content': '<pad>'}]
  (tmp_path / 'tokenizer.json').write_text(json.dumps({'added_tokens': added}))
  assert convert.open_sources([tmp_path]).config.llm.vocab == 514


@pytest.mark.parametrize(
  'rows, names, is_taken',
  [
    (576, 1, True),  # 513 padded to a multiple of 64.
    (520, 3, True),
    (576, 0, False),
    (514, 1, False),
    (704, 1, False),  # A multiple, but not the next one.
  ],
)
def test_a_grown_embedding_may_be_padded(tmp_path, rows, names, is_taken):
  grown(tmp_path, rows)
  added = {f'<{row}>': 512 + row for row in range(names)}
  (tmp_path / 'added_tokens.json').write_text(json.dumps(added))
  if is_taken:
    assert convert.open_sources([tmp_path]).config.llm.vocab == rows
  else:
    assert 'a tokenizer of 512 tokens' in refused(tmp_path)


def test_files_of_a_trainer_beside_the_weights_are_not_read(tmp_path):
  whole = {key: value.read() for key, value in sources.open_source(GOLDEN / LLAMA).tensors.items()}
  folder = edited(tmp_path / 'folder', LLAMA)
  (folder / 'model.safetensors').unlink()
  for name in (
    *('training_args.bin', 'optimizer.pt', 'optimizer.bin', 'scheduler.pt', 'scaler.pt'),
    *('rng_state.pth', 'rng_state_0.pth', 'trainer_state.json', 'random_states_0.pt'),
    'bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt',
  ):
    (folder / name).write_bytes(b'cargs')
  (folder / 'global_step10.pt').mkdir()
  for name in ('pytorch_model.bin', 'weights.pt'):
    (folder / f'._{name}').write_bytes(b'of macOS')
    pth_writer.write_pth(folder / name, release.as_tensors(whole))
    assert sources.open_source(folder).tensors.keys() == whole.keys()
    (folder / name).unlink()
  assert 'a folder with' in refused(folder)


def test_an_index_of_pickles_is_followed(tmp_path):
  whole = {key: value.read() for key, value in sources.open_source(GOLDEN / LLAMA).tensors.items()}
  folder = edited(tmp_path / 'folder', LLAMA)
  (folder / 'model.safetensors').unlink()
  names_of = {key: f'pytorch_model-0000{1 + i % 2}-of-00002.bin' for i, key in enumerate(whole)}
  for name in set(names_of.values()):
    part = {key: value for key, value in whole.items() if names_of[key] == name}
    pth_writer.write_pth(folder / name, release.as_tensors(part))
  # A shard of an earlier save.
  shutil.copy(folder / name, folder / 'pytorch_model-00001-of-00003.bin')
  (folder / sources._PICKLE_INDEX).write_text(json.dumps({'weight_map': names_of}))
  assert sources.open_source(folder).tensors.keys() == whole.keys()
  (folder / name).unlink()
  assert f'1 of 2 shards missing: {name}' in refused(folder)
  (folder / sources._PICKLE_INDEX).write_text(POINTER)
  assert 'git lfs pull' in refused(folder)


def test_one_of_two_copies_of_the_weights_is_read_or_both_are_named(tmp_path):
  folder = edited(tmp_path / 'folder', LLAMA)
  shutil.copy(folder / 'model.safetensors', folder / 'consolidated.safetensors')
  assert sources.open_source(folder).settings
  (folder / safetensors.INDEX).write_text('{"weight_map": {"x": "consolidated.safetensors"}}')
  assert 'model.safetensors, and an index of other files' in refused(folder)


def test_weights_elsewhere_or_of_another_kind_are_named(tmp_path):
  folder = edited(tmp_path / 'folder', LLAMA)
  (folder / 'checkpoint-500').mkdir()
  (folder / 'model.safetensors').rename(folder / 'checkpoint-500' / 'model.safetensors')
  assert 'give a folder inside it (checkpoint-500)' in refused(folder)
  for name in ('llama.gguf', 'pytorch_model.bin', 'model.safetensors'):
    (folder / name).write_bytes(b'GGUF\3\0\0\0' + bytes(64))
    assert f'{name}: got a GGUF file' in refused(folder)
    (folder / name).unlink()


@pytest.mark.parametrize('name', [LLAMA, 'clip_hf', 'dinov2_hf', 'convnext_timm', 'blip2_hf'])
def test_wrappers_in_any_order_are_removed(name):
  original = safetensors.open_safetensors(GOLDEN / name)
  outside = ('module.', 'base_model.model.', 'model.', '_orig_mod.', '_forward_module.')
  rng = random.Random(0)
  orders = [*itertools.permutations(outside, 2), *(rng.choices(outside, k=3) for _ in range(5))]
  for wrappers in (*((wrapper,) for wrapper in outside), *orders):
    wrapped = {''.join(wrappers) + key: value for key, value in original.items()}
    assert names.unwrap(wrapped, sources._is_known) == original, wrappers
  inside = {
    key.replace('.layers.1.', '.layers.1._orig_mod._checkpoint_wrapped_module.'): value
    for key, value in original.items()
  }
  assert names.unwrap(inside, sources._is_known) == original
  assert names.unwrap(original, sources._is_known) == original


@pytest.mark.parametrize('ranks', [1, 2])
def test_an_official_folder_may_have_wrapped_names(tmp_path, ranks):
  arrays = release.tensors(release.official_shapes(), np.float16)
  plain = assemble.arrays(convert.open_sources([release.write_official(tmp_path / 'a', arrays)]))
  folder = release.write_official(tmp_path / 'b', arrays, ranks)
  for file in folder.glob('*.pth'):
    whole = torch.load(file, weights_only=True)['model']
    torch.save({'model': {f'module.{key}': value for key, value in whole.items()}}, file)
  wrapped = assemble.arrays(convert.open_sources([folder]))
  assert all(np.array_equal(wrapped[path].read(()), plain[path].read(())) for path in plain)


def test_an_adapter_is_to_be_merged(tmp_path):
  name = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
  safetensors.write_safetensors(tmp_path, {name: tensor(4, 32)})
  (tmp_path / 'model.safetensors').rename(tmp_path / 'adapter_model.safetensors')
  file = refused(tmp_path / 'adapter_model.safetensors')
  assert 'LoRA' in file and 'merge it into its base first' in file
  assert 'a LoRA adapter (adapter_model.safetensors)' in refused(tmp_path)
  (tmp_path / 'adapter_config.json').write_text('{"peft_type": "LORA", "r": 4}')
  folder = refused(tmp_path)
  assert 'a LoRA adapter (adapter_config.json)' in folder and 'merge it into its base' in folder


@pytest.mark.parametrize(
  'name', ['model.safetensors', 'config.json', 'tokenizer.model', 'pytorch_model.bin']
)
@pytest.mark.parametrize(
  'text, words', [(POINTER, 'git lfs pull'), ('<!DOCTYPE html><html>', 'web page')]
)
def test_a_pointer_or_a_web_page_in_place_of_a_file_is_named(tmp_path, name, text, words):
  folder = edited(tmp_path / 'folder', LLAMA)
  shutil.copy(TOKENIZER, folder)
  if name == 'pytorch_model.bin':
    (folder / 'model.safetensors').unlink()
  (folder / name).write_text(text)
  message = refused(folder)
  assert name in message and words in message


def test_json_files_may_begin_with_a_byte_order_mark(tmp_path):
  folder = edited(tmp_path / 'folder', LLAMA)
  text = (folder / 'config.json').read_bytes()
  (folder / 'config.json').write_bytes(codecs.BOM_UTF8 + text)
  assert sources.open_source(folder).settings == sources.open_source(GOLDEN / LLAMA).settings


def test_a_missing_or_empty_config_is_named_once(tmp_path):
  folder = edited(tmp_path / 'folder', LLAMA)
  for spoil in (
    lambda file: file.write_text('{}'),
    lambda file: file.unlink(),
  ):
    spoil(folder / 'config.json')
    message = refused(folder)
    assert message.startswith("config.json: got no such file, expected 'hidden_size'")
  (folder / 'config.json').write_text('[' * 100_000)
  assert 'no JSON' in refused(folder)
