"""Folders of HF transformers are mixed like the checkpoints that they become."""

import functools
import json
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sphinx_jax import convert, mix_weights
from sphinx_jax.checkpoint import mixing as checkpoint_mixing, read_ahead, stream
from sphinx_jax.checkpoint.foreign import adapters, assemble, mixing, safetensors, sources
from sphinx_jax.core import errors, trees
from tests import release
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA, TOKENIZER
from tests.models import idefics2_golden as golden

SOURCES = {'idefics2': golden.FOLDER / 'model', 'llama': GOLDEN / LLAMA}


def weight_files(folder):
  return sorted(folder.glob('*.safetensors'))


def arrays(folder):
  found = {}
  for file in weight_files(folder):
    found |= load_file(file)
  return found


def changed(folder, source, seed, change=None, config=None):
  """A copy of a release with other numbers, or with a change of a tensor or of its config."""
  shutil.copytree(source, folder)
  rng = np.random.default_rng(seed)
  for file in weight_files(folder):
    file.chmod(0o644)
    found = {
      key: (value + rng.normal(0, 0.1, value.shape)).astype(value.dtype)
      for key, value in load_file(file).items()
    }
    for value in found.values():
      if change is not None:
        change(value)
    save_file(found, file, metadata={'format': 'pt'})
  if config is not None:
    config_file = folder / 'config.json'
    config_file.chmod(0o644)
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | config))
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Name of a family -> three models of it; with their conversions in 'NAME_ours'."""
  place, found = tmp_path_factory.mktemp('folders'), {}
  for name, source in SOURCES.items():
    found[name] = [changed(place / f'{name}{seed}', source, seed) for seed in range(3)]
    found[f'{name}_ours'] = []
    for folder in found[name][: 3 if name == 'llama' else 2]:
      if name == 'llama':
        shutil.copy(TOKENIZER, folder)
      ours = place / f'{folder.name}_ours'
      convert.import_checkpoint(convert.open_sources([folder]), ours)
      found[f'{name}_ours'].append(ours)
  return found


def cut_shards(monkeypatch, shard_bytes):
  write = functools.partial(safetensors.write_safetensors, shard_bytes=shard_bytes)
  monkeypatch.setattr(safetensors, 'write_safetensors', write)


def parameters(folder):
  opened = assemble.arrays(assemble.assemble([sources.open_source(folder)]))
  return {path: array.read(()) for path, array in opened.items()}


@pytest.mark.parametrize(
  'name, coefficients, options',
  [
    ('idefics2', (0.3, 0.7), {}),
    ('idefics2', [('vision/.*', (1, 0)), ('llm/.*', (0.5, 0.5)), ('.*', (0, 1))], {}),
    ('llama', (0.3, 0.7), {'method': 'slerp'}),
    ('llama', (0.4, 0.9), {'base': 2}),
    ('llama', (0.3, 0.7), {'dtype': 'bfloat16'}),
  ],
)
def test_a_mix_is_the_mix_of_the_conversions(
  name, coefficients, options, folders, tmp_path, monkeypatch
):
  monkeypatch.setattr(mixing, '_PIECE', 1000)
  both = {}
  for kind, mix in (('', mixing.mix_folders), ('_ours', checkpoint_mixing.mix_checkpoints)):
    places = folders[name + kind]
    given = options | ({'base': places[2]} if 'base' in options else {})
    both[kind] = mix(places[:2], coefficients, tmp_path / f'mix{kind}', **given)
  found = parameters(both[''])
  want = {path: array.read(()) for path, array in stream.read(both['_ours']).items()}
  assert found.keys() == want.keys()
  for path, value in want.items():
    assert found[path].dtype == value.dtype
    if options.get('method') == 'slerp':  # Its sums over a tensor are rounded in another order.
      np.testing.assert_allclose(found[path], value, rtol=1e-3)  # One step of float16.
    else:
      assert found[path].tobytes() == value.tobytes(), path


@pytest.mark.parametrize('is_held', [True, False])
@pytest.mark.parametrize('method', ['ties', 'breadcrumbs', 'model_stock', 'dare_linear'])
def test_every_tensor_of_a_folder_is_mixed_alone(method, is_held, folders, tmp_path, monkeypatch):
  """As a layer of the conversions is, read as a whole or by rows."""
  monkeypatch.setattr(mixing, '_PIECE', 1000)
  if not is_held:
    monkeypatch.setattr(mixing, '_HELD_BYTES', 0)
  both = {}
  for kind, mix in (('', mixing.mix_folders), ('_ours', checkpoint_mixing.mix_checkpoints)):
    *inputs, base = folders[f'llama{kind}']
    output = tmp_path / f'mix{kind}'
    both[kind] = mix(inputs, (0.5, 0.5), output, base=base, method=method, dtype='float32')
  found = parameters(both[''])
  want = {path: array.read(()) for path, array in stream.read(both['_ours']).items()}
  kept = []
  for path, value in want.items():
    if method == 'dare_linear':  # The numbers of a folder are in another order.
      kept.append(np.mean(value != found[path]))
    elif method == 'model_stock':  # Its sums are rounded in another order.
      np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6)
    else:
      np.testing.assert_array_equal(found[path], value)
  assert not kept or max(kept) < 0.5
  recipe = json.loads((both[''] / 'mix.json').read_text())
  assert recipe['method'] == method and ('density' in recipe.get('options', {})) == (
    method != 'model_stock'
  )


def test_the_folder_has_the_files_of_the_first_input_and_a_card(folders, tmp_path, monkeypatch):
  cut_shards(monkeypatch, 1e5)
  first, second, third = (tmp_path / name for name in ('first', 'second', 'of/second'))
  for folder, source, licence in zip(
    (first, second, third), folders['idefics2'], ('apache-2.0', 'mit', None)
  ):
    shutil.copytree(source, folder)
    (folder / 'README.md').write_text(f'---\nlicense: {licence}\n---\n' if licence else 'My model.')
  output = tmp_path / 'mix'
  mixing.mix_folders([first, second, third], (0.5, 0.25, 0.25), output)
  assert (output / 'model.safetensors.index.json').exists() and len(weight_files(output)) > 3
  assert arrays(output).keys() == arrays(first).keys()
  names = {path.name for path in first.iterdir() if path.suffix in ('.json', '.model')}
  for name in names - {'config_v5.json', 'model.safetensors.index.json'}:
    assert (output / name).read_bytes() == (first / name).read_bytes()
  card = (output / 'README.md').read_text()
  assert 'license: other\n' in card and 'base_model:\n- first\n- second\n' in card
  for line in ('| first | 0.5 |', '| second | mit |', '| second | not stated |'):
    assert line in card
  mixing.mix_folders([first, third], (0.5, 0.5), tmp_path / 'two', dtype='bfloat16')
  assert 'license: apache-2.0\n' in (tmp_path / 'two' / 'README.md').read_text()
  assert json.loads((tmp_path / 'two' / 'config.json').read_text())['torch_dtype'] == 'bfloat16'


def test_the_same_mix_is_kept_and_another_refused(folders, tmp_path):
  a, b = (shutil.copytree(place, tmp_path / place.name) for place in folders['llama'][:2])
  output = mixing.mix_folders([a, b], (0.5, 0.5), tmp_path / 'mix')
  before = weight_files(output)[0].stat().st_mtime_ns
  mixing.mix_folders([f'{a}/', b], (0.5, 0.5), output)
  assert weight_files(output)[0].stat().st_mtime_ns == before
  with pytest.raises(errors.SphinxError, match='exists already.*--output'):
    mixing.mix_folders([a, b], (0.4, 0.6), output)
  shutil.rmtree(b)
  changed(b, folders['llama'][1], 9)
  with pytest.raises(errors.SphinxError, match='exists already.*--output'):
    mixing.mix_folders([a, b], (0.5, 0.5), output)


def widened(folder, axes, **settings):
  """Makes tensors larger along an axis: part of a name -> axis."""
  (file,) = weight_files(folder)
  found = load_file(file)
  for key in found:
    for part, axis in axes.items():
      if part in key:
        more = np.take(found[key], range(8), axis)
        found[key] = np.concatenate([found[key], more], axis)
  save_file(found, file)
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config | settings))


def wider_vocabulary(folder):
  widened(folder, {'embed_tokens': 0, 'lm_head': 0}, vocab_size=520)
  (folder / 'added_tokens.json').write_text(json.dumps({f'<{i}>': i for i in range(512, 520)}))


def wider_mlp(folder):
  axes = {'gate_proj': 0, 'up_proj': 0, 'down_proj': 1}
  widened(folder, axes, intermediate_size=96)


def other_tokenizer(folder):
  vocabulary = TOKENIZER.read_bytes()
  assert b'\n\x04\xe2\x96\x81t' in vocabulary
  (folder / 'tokenizer.model').write_bytes(
    vocabulary.replace(b'\n\x04\xe2\x96\x81t', b'\n\x04abcd')
  )


def not_a_number(folder):
  file = weight_files(folder)[0]
  found = load_file(file)
  found['model.norm.weight'][3] = np.nan
  save_file(found, file)


def cut(folder):
  file = weight_files(folder)[0]
  file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
  'spoil, words',
  [
    (wider_vocabulary, r"input '.*b': got another model \(llm.vocab: 512 there, 520 here"),
    (wider_mlp, r"input '.*b': .*w1/kernel: shape \(2, 32, 96\), expected \(2, 32, 88\)"),
    (other_tokenizer, "input '.*b': got another tokenizer .1 tokens differ.*'abcd'"),
    (not_a_number, 'NaN or infinity in model.norm.weight of input 2'),
    (cut, 'model.safetensors.*damaged'),
    (lambda folder: (folder / 'config.json').unlink(), 'config.json'),
  ],
)
def test_inputs_that_do_not_fit_leave_nothing(spoil, words, folders, tmp_path):
  shutil.copytree(folders['llama'][1], tmp_path / 'b')
  spoil(tmp_path / 'b')
  with pytest.raises(errors.SphinxError, match=words):
    mixing.mix_folders([folders['llama'][0], tmp_path / 'b'], (0.5, 0.5), tmp_path / 'mix')
  assert [path.name for path in tmp_path.iterdir()] == ['b']


def test_other_architectures_and_settings_are_named(folders, tmp_path):
  rope = {'rope_parameters': {'rope_theta': 99.0, 'rope_type': 'default'}}
  other = changed(tmp_path / 'rope', folders['llama'][1], 5, config=rope)
  meta = release.write_meta(tmp_path / 'meta', release.tensors(release.llama_shapes()))
  official = release.write_official(
    tmp_path / 'official', release.tensors(release.official_shapes())
  )
  for place, words in (
    (official, 'got official SPHINX, llama_ens_light, expected a folder of HF transformers'),
    (folders['idefics2'][0], 'got Idefics2 of HF transformers, expected LLaMA of HF transformers'),
    (other, r'another model \(llm.rope_theta: 5000.0 there, 99.0 here'),
    (meta, 'got LLaMA as Meta names it, expected a folder of HF transformers.*convert'),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      mixing.mix_folders([folders['llama'][0], place], (0.5, 0.5), tmp_path / 'mix')
  with pytest.raises(errors.SphinxError, match='sum 1.1'):
    mixing.mix_folders(folders['llama'][:2], (0.5, 0.6), tmp_path / 'mix')


def test_how_images_are_cut_does_not_decide_what_weights_mean(folders, tmp_path):
  other = shutil.copytree(folders['idefics2'][1], tmp_path / 'split')
  file = other / 'preprocessor_config.json'
  file.chmod(0o644)
  file.write_text(json.dumps(json.loads(file.read_text()) | {'do_image_splitting': True}))
  (other / 'tokenizer.model').unlink()  # tokenizer.json has the same tokens.
  mixing.mix_folders([folders['idefics2'][0], other], (1, 0), tmp_path / 'mix')
  for key, value in arrays(folders['idefics2'][0]).items():
    np.testing.assert_array_equal(arrays(tmp_path / 'mix')[key], value)


def test_checkpoints_and_folders_are_not_mixed_with_each_other(folders, tmp_path):
  with pytest.raises(errors.SphinxError, match='llama0_ours.*llama1.*convert.*--to=hf'):
    mix_weights._choose_mix([str(folders['llama_ours'][0]), str(folders['llama'][1])])
  assert mix_weights._choose_mix([str(tmp_path / 'none')]) == checkpoint_mixing.mix_checkpoints


def test_pickles_are_read(folders, tmp_path):
  a, b = folders['llama'][:2]
  pickled = tmp_path / 'pickled'
  shutil.copytree(b, pickled)
  torch.save(
    {key: torch.tensor(value) for key, value in arrays(b).items()}, pickled / 'pytorch_model.bin'
  )
  weight_files(pickled)[0].unlink()
  found, want = (
    arrays(mixing.mix_folders([a, other], (0.5, 0.5), tmp_path / f'mix{i}'))
    for i, other in enumerate((pickled, b))
  )
  for key, value in want.items():
    np.testing.assert_array_equal(found[key], value)


def test_the_command_merges_an_adapter_into_one_input_with_commas_in_its_path(folders, tmp_path):
  base = shutil.copytree(folders['llama'][0], tmp_path / 'a,b')
  adapter = GOLDEN.parent / 'adapters' / 'dora'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'sphinx_jax.mix_weights'),
      *(f'--inputs={base}+{adapter}', f'--output={tmp_path}/merged'),
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  want = adapters.merge(sources.open_source(base).tensors, adapter, base)
  found = arrays(tmp_path / 'merged')
  assert found.keys() == want.keys()
  for key, tensor in want.items():
    assert found[key].dtype == np.float16
    np.testing.assert_array_equal(found[key], tensor.read())


def test_memory_is_a_shard_and_a_tensor_of_each_input(tmp_path, monkeypatch):
  """48 layers of 0.5 MB, in shards of 2 MB."""
  cut_shards(monkeypatch, 2e6)
  monkeypatch.setattr(read_ahead, 'MAX_BYTES', 1 << 20)
  config = json.loads((GOLDEN / LLAMA / 'config.json').read_text()) | {
    'num_hidden_layers': 48,
    'hidden_size': 128,
    'head_dim': 32,
    'intermediate_size': 512,
  }
  shapes = {key: value.shape for key, value in arrays(GOLDEN / LLAMA).items()}
  sizes = {32: 128, 16: 64, 88: 512, 512: 512}
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps(config))
    found = {}
    for key, shape in shapes.items():
      layers = range(48) if 'layers.0' in key else range(0 if 'layers' in key else 1)
      for layer in layers:
        found[key.replace('layers.0', f'layers.{layer}')] = np.ones(
          [sizes[n] for n in shape], np.float16
        )
    save_file(found, tmp_path / name / 'model.safetensors')
  size = sum(value.nbytes for value in found.values())
  del found
  mixing.mix_folders([tmp_path / 'a'], (1,), tmp_path / 'warm')
  tracemalloc.start()
  mixing.mix_folders([tmp_path / 'a', tmp_path / 'b'], (0.5, 0.5), tmp_path / 'mix')
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert size > 20e6 and peak < 8e6
  assert trees.nbytes(arrays(tmp_path / 'mix')) == size
