"""Adapters of PEFT on our checkpoints, and ours as PEFT has them; tests/golden/adapters."""

import json
import re
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from sphinx_jax import convert, few_bits
from sphinx_jax.checkpoint import adapter_runs, bundle, factors, merged, mixing, store, stream
from sphinx_jax.checkpoint.foreign import adapters as peft, assemble, card, native_adapters, sources
from sphinx_jax.core import errors, trees
from sphinx_jax.generate import load
from sphinx_jax.models import adapters
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA, TOKENIZER
from tests.generate import small
from tests.models import idefics2_golden as golden

ADAPTERS = GOLDEN.parent / 'adapters'
OF_LLAMA = [ADAPTERS / name for name in ('lora', 'rslora', 'dora', 'saved')]
OF_IDEFICS2 = golden.FOLDER / 'adapter'
BIAS = ADAPTERS / 'bias'  # Of q, whose parameters are one with those of k and v.


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """Name -> a folder of transformers, and its conversion."""
  root, found = tmp_path_factory.mktemp('bases'), {}
  for name, folder in (('llama', GOLDEN / LLAMA), ('idefics2', golden.FOLDER / 'model')):
    assembly = convert.open_sources([folder], tokenizer=str(TOKENIZER) if name == 'llama' else None)
    convert.import_checkpoint(assembly, root / name)
    found[name] = folder, root / name
  return found


def arrays(place):
  """The weights of BASE+ADAPTER, ours or a folder of transformers."""
  if store.is_checkpoint(merged.split(place)[0]):
    opened = merged.open_checkpoint(place).arrays
  else:
    opened = assemble.arrays(assemble.assemble([sources.open_source(place)]))
  return {path: array.read(()) for path, array in opened.items()}


def assert_near(found, expected, atol):
  assert found.keys() == expected.keys()
  for path, value in expected.items():
    wide = (array.astype(np.float32) for array in (found[path], value))
    np.testing.assert_allclose(*wide, atol=atol, rtol=0, err_msg=path)


@pytest.mark.parametrize('adapter', [*OF_LLAMA, OF_IDEFICS2, BIAS], ids=lambda folder: folder.name)
def test_a_checkpoint_with_an_adapter_is_the_folder_with_it(bases, adapter):
  folder, ours = bases['llama' if adapter in OF_LLAMA else 'idefics2']
  expected, before = arrays(f'{folder}+{adapter}'), arrays(ours)
  # Sums in another order, rounded to the dtype of the base: float16 of the LLaMA.
  assert_near(arrays(f'{ours}+{adapter}'), expected, 1e-3 if adapter in OF_LLAMA else 1e-6)
  assert any(np.abs(expected[path] - before[path]).max() > 0.01 for path in before)
  assert {array.dtype for array in expected.values()} == {before['llm/embed'].dtype}


def test_parts_of_a_merged_matrix_are_those_of_the_whole(bases):
  ours = bases['llama'][1]
  for adapter in (ADAPTERS / 'dora', ADAPTERS / 'saved'):
    opened = merged.open_checkpoint(f'{ours}+{adapter}').arrays
    merged_arrays = {
      path: array for path, array in opened.items() if isinstance(array, factors.MergedArray)
    }
    assert merged_arrays
    for array in merged_arrays.values():
      whole = array.read(())
      indices = [(slice(1, 2),), (0,)]
      if whole.ndim == 3:
        indices += [(1, slice(2, 9)), (1, 3), (1, 3, slice(4, 6)), (slice(0, 1), slice(3, 5))]
      for index in indices:
        np.testing.assert_array_equal(array.start_read(index).result(), whole[index])


def test_a_mix_of_a_checkpoint_and_an_adapter_records_both(bases, tmp_path):
  ours, adapter = bases['llama'][1], shutil.copytree(ADAPTERS / 'rslora', tmp_path / 'adapter')
  (adapter / card.NAME).write_text('---\nlicense: mit\n---\n')
  mixing.mix_checkpoints([f'{ours}+{adapter}'], (1.0,), tmp_path / 'mix')
  (parent,) = store.load_meta(tmp_path / 'mix')['parents']
  assert parent['adapter'] == str(adapter) and 'adapter_config.json' in str(parent)
  assert_near(arrays(tmp_path / 'mix'), arrays(f'{ours}+{adapter}'), 0)
  origins = {'llama_hf': None, 'adapter': 'mit'}
  assert card.releases(store.load_meta(tmp_path / 'mix')) == origins
  convert.export_checkpoint(f'{ours}+{adapter}', str(tmp_path / 'hf'), 'hf')
  assert ModelCard.load(tmp_path / 'hf' / card.NAME).data.base_model == [*origins]
  assert_near(arrays(tmp_path / 'hf'), arrays(f'{ours}+{adapter}'), 0)


def test_dora_on_few_bits_is_loaded_as_it_is_mixed(bases, tmp_path):
  few_bits.quantize(few_bits.open_full(bases['llama'][1]), tmp_path / 'held', 'int8')
  place = f'{tmp_path / "held"}+{ADAPTERS / "dora"}'
  mixing.mix_checkpoints([place], (1.0,), tmp_path / 'mix')
  loaded, mixed = (trees.flatten(load.load_model(at).params) for at in (place, tmp_path / 'mix'))
  assert loaded.keys() == mixed.keys()
  for path, leaf in mixed.items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


def test_a_checkpoint_is_opened_with_one_look_at_its_meta(bases, monkeypatch):
  looked, read = [], store.load_meta
  monkeypatch.setattr(store, 'load_meta', lambda place: looked.append(place) or read(place))
  ours = str(bases['llama'][1])
  merged.open_checkpoint(ours)
  assert looked.count(ours) == 1  # Its arrays are those of a step, with one more.


def as_run(folder, base, adapter, whole=(), **lora):
  """A run of ours that trained what a folder of PEFT has, and more parameters in full."""
  carried = bundle.load_bundle(base)
  lora = dict(rank=4, alpha=8.0, target='', ranks=(), rslora=False, dropout=0.1) | lora
  with carried.config.unlocked():
    carried.config.lora = lora
    carried.config.init_from = str(base)
  held = native_adapters.read(adapter, base).unmerged()
  leaves = {path: array.read(()) for path, array in held.items()}
  stored = stream.read(base)
  leaves |= {path: stored[path].read(()).astype(np.float32) for path in whole}
  with store.Store(folder) as saver:
    saver.save(3, trees.unflatten(leaves), None, {**carried.to_meta(), **adapter_runs.base(base)})
  return folder


def test_there_and_back_is_bit_equal(bases, tmp_path):
  run = as_run(tmp_path / 'run', bases['idefics2'][1], OF_IDEFICS2)
  convert.export_adapter(str(run), str(tmp_path / 'out'))
  written, recorded = (
    load_file(folder / peft.TENSORS) for folder in (tmp_path / 'out', OF_IDEFICS2)
  )
  assert written.keys() == recorded.keys()
  for key, value in recorded.items():
    np.testing.assert_array_equal(written[key], value)
  config = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
  given = {
    key: value for key, value in config.items() if key in ('r', 'lora_alpha', 'lora_dropout')
  }
  assert given == {'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.1}
  assert not config['rank_pattern'] and not config['alpha_pattern']
  assert config['base_model_name_or_path'] == 'model' and config['modules_to_save'] is None
  modules = {re.match(r'base_model.model.(.+)\.lora_', key)[1] for key in recorded}
  named = {
    key.removesuffix('.weight')
    for key in golden.tensors()
    if re.fullmatch(config['target_modules'], key.removesuffix('.weight'))
  }
  assert named == modules
  assert 'library_name: peft' in (tmp_path / 'out' / card.NAME).read_text()


@pytest.mark.parametrize(
  'adapter, lora', [('rslora', {'rslora': True}), ('lora', {}), ('own scales', {})]
)
def test_ranks_and_factors_of_layers_are_kept(bases, tmp_path, adapter, lora):
  folder, ours = bases['llama']
  source = ADAPTERS / (adapter if lora or adapter == 'lora' else 'lora')
  if adapter == 'own scales':  # One of which no whole alpha is the cause.
    source = shutil.copytree(source, tmp_path / 'peft')
    config = json.loads((source / peft.CONFIG).read_text())
    config['alpha_pattern'] = {'layers.0.self_attn.q_proj': 1.7}
    (source / peft.CONFIG).write_text(json.dumps(config))
  run = as_run(tmp_path / 'run', ours, source, **lora)
  convert.export_adapter(str(run), str(tmp_path / 'out'))
  config = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
  assert config['use_rslora'] == bool(lora)
  assert bool(config['alpha_pattern']) == (adapter != 'lora')
  found, expected = (
    native_adapters.read(place, ours).factors for place in (tmp_path / 'out', source)
  )
  for path, factor in expected.items():
    np.testing.assert_allclose(found[path].delta(()), factor.delta(()), atol=1e-6, err_msg=path)


WHOLE = ('llm/output/kernel', 'llm/layers/ffn_norm/scale')


def test_whole_modules_beside_adapters_are_saved(bases, tmp_path):
  ours = bases['llama'][1]
  run = as_run(tmp_path / 'run', ours, ADAPTERS / 'lora', WHOLE)
  convert.export_adapter(str(run), str(tmp_path / 'out'))
  config = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
  layers = [f'model.layers.{i}.post_attention_layernorm' for i in range(2)]
  assert sorted(config['modules_to_save']) == ['lm_head', *layers]
  tensors = load_file(tmp_path / 'out' / peft.TENSORS)
  assert f'base_model.model.{layers[0]}.weight' in tensors
  assert native_adapters.read(tmp_path / 'out', ours).replaced.keys() == set(WHOLE)
  assert_near(arrays(f'{ours}+{tmp_path / "out"}'), arrays(f'{ours}+{run}'), 1e-3)


@pytest.mark.parametrize(
  'name, whole, words',
  [
    ('idefics2', 'perceiver/latents', 'perceiver_resampler.latents'),
    ('idefics2', 'vision/trunk/layers/mlp/up/bias', r'layers.0.mlp.fc1.bias.*whole modules'),
    ('idefics2', 'projection/w1/kernel', 'modality_projection.gate_proj.weight.*whole modules'),
  ],
)
def test_what_peft_cannot_hold_is_refused_by_name(bases, tmp_path, name, whole, words):
  run = as_run(tmp_path / 'run', bases[name][1], OF_IDEFICS2, [whole])
  with pytest.raises(errors.SphinxError, match=f'that PEFT cannot hold.*{words}'):
    convert.export_adapter(str(run), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_only_the_language_model_of_a_model_that_transformers_lacks_is_written(tmp_path, caplog):
  caplog.set_level('INFO')
  base = small.save(tmp_path / 'base')
  run = small.save_adapter(tmp_path / 'run', base)
  convert.export_adapter(str(run), str(tmp_path / 'out'))
  assert 'the language model alone' in caplog.text
  assert json.loads((tmp_path / 'out' / peft.CONFIG).read_text())['base_model_name_or_path'] is None
  assert_near(arrays(f'{base}+{tmp_path / "out"}'), arrays(f'{base}+{run}'), 1e-5)
  run = small.save_adapter(tmp_path / 'all', base, target='(llm/layers|encoders/convnext)/.*')
  with pytest.raises(errors.SphinxError, match='that PEFT cannot hold .encoders/convnext'):
    convert.export_adapter(str(run), str(tmp_path / 'more'))
  with pytest.raises(errors.SphinxError, match='got a checkpoint with all weights.*--to=hf'):
    convert.export_adapter(str(base), str(tmp_path / 'more'))
  with pytest.raises(errors.SphinxError, match='a run that holds adapters alone'):
    convert.export_checkpoint(str(run), str(tmp_path / 'more'), 'hf')


def test_tensors_of_some_layers_alone_leave_those_of_others(bases, tmp_path):
  adapter = shutil.copytree(ADAPTERS / 'saved', tmp_path / 'adapter')
  tensors = load_file(adapter / peft.TENSORS)
  del tensors['base_model.model.model.layers.1.input_layernorm.weight']
  save_file(tensors, adapter / peft.TENSORS)
  folder, ours = bases['llama']
  assert_near(arrays(f'{ours}+{adapter}'), arrays(f'{folder}+{adapter}'), 1e-3)


def test_a_module_that_the_base_lacks_is_refused(bases):
  with pytest.raises(errors.SphinxError, match='modules that the base does not have'):
    native_adapters.read(OF_IDEFICS2, bases['llama'][1])


def test_matrices_side_by_side_have_adapters_of_their_own(bases, tmp_path):
  """q and v of the vision tower, which are one kernel [in,3,out] with k."""
  ours, tensors = bases['idefics2'][1], {}
  rng = np.random.default_rng(0)
  for i in range(2):
    for name, width in (('q', 32), ('v', 32)):
      key = f'base_model.model.model.vision_model.encoder.layers.{i}.self_attn.{name}_proj'
      tensors[f'{key}.lora_A.weight'] = rng.normal(size=(3, 32)).astype(np.float32)
      tensors[f'{key}.lora_B.weight'] = rng.normal(size=(width, 3)).astype(np.float32)
  config = dict(peft_type='LORA', r=3, lora_alpha=6, alpha_pattern={'v_proj': 3})
  (tmp_path / 'adapter').mkdir()
  (tmp_path / 'adapter' / peft.CONFIG).write_text(json.dumps(config))
  save_file(tensors, tmp_path / 'adapter' / peft.TENSORS)
  folder = bases['idefics2'][0]
  expected = arrays(f'{folder}+{tmp_path / "adapter"}')
  assert_near(arrays(f'{ours}+{tmp_path / "adapter"}'), expected, 1e-5)
  held = native_adapters.read(tmp_path / 'adapter', ours).unmerged()
  assert held[f'vision/trunk/layers/attention/qkv/{adapters.B}'].shape == (2, 6, 3, 32)
  run = as_run(tmp_path / 'run', ours, tmp_path / 'adapter')
  convert.export_adapter(str(run), str(tmp_path / 'out'))
  assert_near(arrays(f'{ours}+{tmp_path / "out"}'), expected, 1e-5)
