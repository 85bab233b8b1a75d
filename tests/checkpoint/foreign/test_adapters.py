"""LoRA adapters of PEFT, merged; tests/golden/adapters has what PEFT itself merges."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sphinx_jax.checkpoint.foreign import adapters, assemble, card, hub, sources
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA
from tests.models import idefics2_golden as golden

BASE, ADAPTERS = GOLDEN / LLAMA, GOLDEN.parent / 'adapters'


def base_tensors(dtype=np.float32, name=''):
  """The base as PEFT had it: its float16 weights, widened."""
  arrays = golden.tensors() if name == 'bias' else load_file(BASE / 'model.safetensors')
  return {
    key: Tensor(value.shape, np.dtype(dtype), lambda value=value: value.astype(dtype))
    for key, value in arrays.items()
  }


def merged(folder, dtype=np.float32):
  return adapters.merge(base_tensors(dtype), folder, BASE)


def edited(folder, name, change_arrays=None, **settings):
  """A copy of a recorded adapter with other settings or tensors."""
  shutil.copytree(ADAPTERS / name, folder)
  config = json.loads((folder / adapters.CONFIG).read_text()) | settings
  (folder / adapters.CONFIG).write_text(json.dumps(config))
  arrays = load_file(folder / 'adapter_model.safetensors')
  if change_arrays is not None:
    change_arrays(arrays)
    save_file(arrays, folder / 'adapter_model.safetensors')
  return folder


@pytest.mark.parametrize('name', ['lora', 'rslora', 'dora', 'saved', 'bias'])
def test_merged_weights_are_those_of_peft(name, monkeypatch):
  monkeypatch.setattr(adapters, '_PIECE', 1000)  # Several pieces of rows.
  expected, before = load_file(ADAPTERS / name / 'merged.safetensors'), base_tensors(name=name)
  found = adapters.merge(
    before, ADAPTERS / name, golden.FOLDER / 'model' if name == 'bias' else BASE
  )
  assert found.keys() == before.keys()
  for key, tensor in found.items():
    want = expected.get(key)
    if want is None:
      np.testing.assert_array_equal(tensor.read(), before[key].read())
    else:
      np.testing.assert_allclose(tensor.read(), want, atol=1e-6, rtol=0)
      assert np.abs(want - before[key].read()).max() > 0.01


def test_a_setting_of_layers_that_no_model_here_has_changes_nothing(tmp_path):
  found = merged(edited(tmp_path / 'a', 'lora', fan_in_fan_out=True))
  for key, value in load_file(ADAPTERS / 'lora' / 'merged.safetensors').items():
    np.testing.assert_allclose(found[key].read(), value, atol=1e-6, rtol=0)


def test_sums_are_rounded_once_to_the_dtype_of_the_base():
  wide, narrow = merged(ADAPTERS / 'dora'), merged(ADAPTERS / 'dora', np.float16)
  for key in load_file(ADAPTERS / 'dora' / 'merged.safetensors'):
    assert narrow[key].dtype == np.float16
    np.testing.assert_array_equal(narrow[key].read(), wide[key].read().astype(np.float16))


def test_adapters_saved_as_pickles_or_with_their_name_are_the_same(tmp_path):
  folder = edited(tmp_path / 'a', 'saved')
  arrays = load_file(folder / 'adapter_model.safetensors')
  (folder / 'adapter_model.safetensors').unlink()
  named = {
    key.replace('.lora_A.', '.lora_A.default.')
    .replace('lm_head.', 'lm_head.modules_to_save.default.')
    .replace('lora_embedding_B', 'lora_embedding_B.default'): torch.tensor(value)
    for key, value in arrays.items()
  }
  torch.save(named, folder / 'adapter_model.bin')
  expected = merged(ADAPTERS / 'saved')
  for key, tensor in merged(folder).items():
    np.testing.assert_array_equal(tensor.read(), expected[key].read())


def rename(arrays):
  for key in [key for key in arrays if 'down_proj' in key]:
    arrays[key.replace('mlp.down_proj', 'mixer.in_proj')] = arrays.pop(key)


def narrow(arrays):
  key = next(key for key in arrays if 'q_proj.lora_A' in key)
  arrays[key] = np.ascontiguousarray(arrays[key][:, :16])


def drop(arrays):
  del arrays[next(key for key in arrays if 'q_proj.lora_B' in key)]


def to_vector(arrays):
  for part in 'AB':
    key = f'base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight'
    arrays[key.replace('self_attn.q_proj', 'input_layernorm')] = arrays.pop(key)


@pytest.mark.parametrize(
  'change, settings, words',
  [
    (rename, {}, r'4? ?modules that the base does not have \(model.layers.0.mixer.in_proj'),
    (narrow, {}, r'layers.0.self_attn.q_proj: lora_A \[3, 16\], lora_B \[32, 3\], expected'),
    (drop, {}, r'layers.0.self_attn.q_proj: lora_A \[3, 32\], expected lora_A'),
    (to_vector, {'target_modules': None}, r'input_layernorm: its weight is \[32\], no matrix'),
    (None, {'r': 8}, r'4 modules that do not fit .*lora_A \[3, 88\].*expected lora_A \[8, 88\]'),
    (None, {'use_dora': True}, r'expected .*lora_magnitude_vector \[32\]'),
    (None, {'target_modules': ['k_proj']}, 'modules that target_modules does not name'),
    (None, {'target_modules': '(['}, 'adapter_config.json.*damaged'),
    (None, {'r': 'x'}, 'adapter_config.json.*damaged'),
    (None, {'use_qalora': True}, 'use_qalora True'),
    (None, {'lora_bias': True}, 'lora_bias True'),
    (None, {'layer_replication': [[0, 1]]}, 'layer_replication'),
    (None, {'trainable_token_indices': [3]}, 'trainable_token_indices'),
    (None, {'init_lora_weights': 'pissa'}, "init_lora_weights 'pissa'"),
    (None, {'peft_type': 'LOHA'}, "peft_type 'LOHA'.*merge_and_unload"),
    (None, {'rotated': True}, 'rotated True .an unknown field'),
  ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_a_weight_is_read(
  tmp_path, change, settings, words
):
  folder = edited(tmp_path / 'adapter', 'lora', change, **settings)
  with pytest.raises(errors.SphinxError, match=words):
    adapters.merge(
      {key: Tensor(t.shape, t.dtype, pytest.fail) for key, t in base_tensors().items()},
      folder,
      BASE,
    )


def test_folders_that_are_no_adapters(tmp_path):
  with pytest.raises(errors.SphinxError, match='no such folder'):
    merged(tmp_path / 'none')
  with pytest.raises(errors.SphinxError, match='no adapter_model.safetensors or adapter_model.bin'):
    merged(BASE)
  with pytest.raises(errors.SphinxError, match='adapter_model.safetensors: got no tensor'):
    merged(edited(tmp_path / 'empty', 'lora', dict.clear))
  folder = edited(tmp_path / 'a', 'lora')
  (folder / adapters.CONFIG).unlink()
  with pytest.raises(errors.SphinxError, match='got no adapter_config.json'):
    merged(folder)


def test_another_base_and_targets_without_a_change_are_noted(tmp_path, caplog):
  merged(ADAPTERS / 'lora')
  assert not [record for record in caplog.records if record.levelname == 'WARNING']
  merged(
    edited(
      tmp_path / 'a',
      'lora',
      base_model_name_or_path='meta/other',
      target_modules=['q_proj', 'down_proj', 'o_proj'],
    )
  )
  assert "made for 'meta/other'" in caplog.text
  assert 'leaves 2 targets as they are (model.layers.0.self_attn.o_proj' in caplog.text


def test_a_base_and_an_adapter_are_one_place_and_a_path_that_exists_wins(tmp_path):
  base, adapter = tmp_path / 'a+b', tmp_path / 'c+d'
  shutil.copytree(BASE, base)
  assert hub.split(base) == (str(base), None)
  shutil.copytree(ADAPTERS / 'lora', adapter)
  assert hub.split(f'{base}+{adapter}') == (str(base), str(adapter))
  found = sources.open_source(f'{base}+{adapter}').tensors
  given = sources.open_source(base, adapter=adapter).tensors
  key = 'model.layers.0.self_attn.q_proj.weight'
  np.testing.assert_array_equal(found[key].read(), given[key].read())
  assert not np.array_equal(found[key].read(), load_file(base / 'model.safetensors')[key])
  shutil.copytree(BASE, f'{base}+{adapter.name}')
  assert hub.split(f'{base}+{adapter.name}') == (f'{base}+{adapter.name}', None)
  with pytest.raises(errors.SphinxError, match="adapter 'none': got no such folder"):
    sources.open_source(f'{base}+none')


def test_base_and_adapter_are_origins_of_what_is_made_of_them(tmp_path):
  base, adapter = shutil.copytree(BASE, tmp_path / 'base'), tmp_path / 'adapter'
  shutil.copytree(ADAPTERS / 'lora', adapter)
  (adapter / card.NAME).write_text('---\nlicense: mit\n---\n')
  assembly = assemble.assemble([sources.open_source(f'{base}+{adapter}')])
  assert card.releases({'foreign': assembly.origin}) == {'base': None, 'adapter': 'mit'}
  json.dumps(assembly.origin)
