"""Folders of Idefics2 as users have them: other files of the same weights, and damaged ones."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch

import sphinx_jax
from sphinx_jax import chat, convert
from sphinx_jax.checkpoint.foreign import safetensors as readers
from sphinx_jax.core import errors, progress
from tests import command
from tests.models import idefics2_golden as golden

SECOND = 'model-00002-of-00003.safetensors'
INDEX = 'model.safetensors.index.json'
HEAD, EMBED = 'lm_head.weight', 'model.text_model.embed_tokens.weight'


@pytest.fixture
def folder(tmp_path):
  for file in (golden.FOLDER / 'model').iterdir():
    (tmp_path / 'model').mkdir(exist_ok=True)
    (tmp_path / 'model' / file.name).write_bytes(file.read_bytes())
  return tmp_path / 'model'


def edit(name, **changes):
  """Changes fields of a JSON file; 'a.b' is the field b of section a."""

  def apply(folder):
    value = json.loads((folder / name).read_text())
    for path, new in changes.items():
      section, _, field = path.partition('.')
      (value[section] if field else value)[field or section] = new
    (folder / name).write_text(json.dumps(value))

  return apply


def reshape(**changes):
  """Changes tensors; all are in one file afterwards."""

  def apply(folder):
    for file in folder.glob('model*.safetensors*'):
      file.unlink()
    changed = {key: change(golden.tensors()[key]) for key, change in changes.items()}
    safetensors.numpy.save_file(
      {**golden.tensors(), **changed}, folder / 'model.safetensors', {'format': 'pt'}
    )

  return apply


def vocabulary(rows, *others):
  """Another number of rows of the embedding, in weights and config."""

  def resize(tensor):
    return np.resize(tensor, (rows, tensor.shape[1]))

  def apply(folder):
    reshape(**{HEAD: resize, EMBED: resize})(folder)
    edit('config.json', **{'text_config.vocab_size': rows})(folder)
    for other in others:
      other(folder)

  return apply


def without(name):
  return lambda folder: (folder / name).unlink()


SPOILED = {
  'a missing shard': (without(SECOND), f'1 of 3 shards missing: {SECOND}'),
  'an index of a file that is not there': (
    edit(INDEX, **{f'weight_map.{HEAD}': 'model-00009-of-00009.safetensors'}),
    '1 of 3 shards missing: model-00009',
  ),
  'shards without an index': (without(INDEX), f'3 .safetensors files and no {INDEX}'),
  'a wrong shape': (
    reshape(**{'model.connector.perceiver_resampler.norm.weight': lambda x: x[:47]}),
    r'perceiver_resampler.norm.weight: shape \(47,\), expected \(48,\)',
  ),
  'another width in the config': (
    edit('config.json', **{'vision_config.hidden_size': 64}),
    r'vision_config.hidden_size 64 \(computed: 32\)',
  ),
  'a vocabulary smaller than the tokenizer': (
    vocabulary(514, without('tokenizer.model')),
    'a tokenizer of 515 tokens, expected the 514',
  ),
  'a vocabulary without the image token': (
    vocabulary(512),
    'image_token_id 513, expected a row of the 512',
  ),
  'rows that nothing explains': (vocabulary(517), 'a tokenizer of 512 tokens, expected the 517'),
  'another patch': (
    edit('preprocessor_config.json', patch_size=16),
    r'preprocessor_config.json.patch_size 16 \(computed: 14\)',
  ),
  'images beyond the table of positions': (
    edit('preprocessor_config.json', **{'size.longest_edge': 1400}),
    'preprocessor_config.json: got size.longest_edge 1400, expected at most 111',
  ),
  'a shortest edge that is longer': (
    edit('preprocessor_config.json', **{'size.shortest_edge': 99}),
    'size.shortest_edge 99, expected at most the longest_edge 98',
  ),
  'another number of visual tokens': (
    edit('processor_config.json', image_seq_len=64),
    r'processor_config.json.image_seq_len 64 \(computed: 4\)',
  ),
}


@pytest.mark.parametrize('case', SPOILED)
def test_a_spoiled_folder_is_refused_by_one_line(folder, tmp_path, case):
  spoil, words = SPOILED[case]
  spoil(folder)
  with pytest.raises(errors.SphinxError, match=words) as caught:
    convert.import_checkpoint(convert.open_sources([folder]), str(tmp_path / 'ours'))
  assert '\n' not in str(caught.value) and not (tmp_path / 'ours').exists()
  with pytest.raises(errors.SphinxError, match=words):
    sphinx_jax.load(folder)


def test_rows_that_added_tokens_explain_are_taken_with_a_note(folder, caplog, monkeypatch):
  monkeypatch.setattr(progress.log, 'propagate', True)
  caplog.set_level('INFO', logger=progress.log.name)
  added = {'<fake_token_around_image>': 512, '<image>': 513, '<end_of_utterance>': 514}
  (folder / 'added_tokens.json').write_text(json.dumps({**added, '<box>': 515, '</box>': 516}))
  vocabulary(517)(folder)
  model = sphinx_jax.load(folder)
  assert model.tokenizer.specials['</box>'] == 516
  assert 'beyond the tokenizer: 5 (' in caplog.text and '<box>, </box>' in caplog.text


def pickled(folder, count):
  """Replaces the shards by those of torch, as transformers names them."""
  for file in folder.glob('model*.safetensors*'):
    file.unlink()
  keys = list(golden.tensors())
  names = [f'pytorch_model-{i + 1:05d}-of-{count:05d}.bin' for i in range(count)]
  names = names if count > 1 else ['pytorch_model.bin']
  weight_map = {key: names[i * count // len(keys)] for i, key in enumerate(keys)}
  for name in names:
    part = {k: torch.tensor(golden.tensors()[k]) for k, file in weight_map.items() if file == name}
    torch.save(part, folder / name)
  if count > 1:
    index = {'metadata': {'total_size': 1}, 'weight_map': weight_map}
    (folder / 'pytorch_model.bin.index.json').write_text(json.dumps(index))


def linked(folder):
  """The folder as a snapshot of the hub's cache: links to blobs without an extension."""
  snapshot = folder.parent / 'models--owner--name' / 'snapshots' / ('a' * 40)
  blobs = snapshot.parents[1] / 'blobs'
  for place in (snapshot, blobs):
    place.mkdir(parents=True)
  for number, file in enumerate(sorted(folder.iterdir())):
    shutil.move(file, blobs / str(number))
    (snapshot / file.name).symlink_to(pathlib.Path('../../blobs') / str(number))
  return snapshot


@pytest.mark.parametrize('count', [1, 2])
def test_files_of_torch_have_the_same_weights_there_and_back(
  folder, tmp_path, capsys, monkeypatch, count
):
  pickled(folder, count)
  snapshot = linked(folder)
  ours, back = str(tmp_path / 'ours'), tmp_path / 'back'
  convert.print_table(convert.open_sources([snapshot], strict=False))
  assert re.search(r'^model.connector.perceiver_resampler.latents +\[4, 48\]', _out(capsys), re.M)
  convert.import_checkpoint(convert.open_sources([snapshot]), ours)
  convert.export_checkpoint(ours, None, 'hf', dry_run=True)
  assert len(_out(capsys).splitlines()) == len(golden.tensors()) and not back.exists()
  convert.export_checkpoint(ours, str(back), 'hf')
  written = readers.open_safetensors(back)
  assert written.keys() == golden.tensors().keys()
  for key, tensor in written.items():
    np.testing.assert_array_equal(tensor.read(), golden.tensors()[key])
  if count == 2:
    assert convert.verify(ours, snapshot) == 0  # Also the logits of a prompt with an image.
    monkeypatch.setattr(convert, '_example_logits', lambda *_: np.zeros(1))
    assert convert.verify(str(back), ours) == 0 and 'config:' not in _out(capsys)


def _out(capsys):
  return capsys.readouterr().out


def test_an_image_that_is_none_or_far_too_large_is_named(tmp_path):
  from PIL import Image

  (tmp_path / 'empty.png').touch()
  Image.new('1', (10_000, 10_000)).save(tmp_path / 'large.png')
  for name, words in (('empty', '0 bytes'), ('large', '10000 x 10000 pixels')):
    with pytest.raises(errors.SphinxError, match=f'{name}.png.*{words}') as caught:
      chat.chat(golden.FOLDER / 'model', tmp_path / f'{name}.png', 'What?', '')
    assert '\n' not in str(caught.value)
  model = sphinx_jax.load(golden.FOLDER / 'model')
  for shape, words in (
    ((0, 0, 3), r'uint8\[0, 0, 3\]'),
    ((10_000, 10_000, 3), '100000000 pixels'),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      model.chat([('<image>What?', None)], np.broadcast_to(np.uint8(0), shape))


def test_settings_of_another_release_are_given_and_carried(tmp_path, capsys):
  source, run = golden.FOLDER / 'model', tmp_path / 'run'
  flags = ['--set=perceiver.eps=1e-5', '--set=vision.patch_rule=any', '--ids=v5']
  code, _, stderr = command.run(capsys, 'convert', f'--source={source}', f'--output={run}', *flags)
  assert code == 0, stderr
  changes = {'perceiver.eps': 1e-5, 'vision.patch_rule': 'any'}
  for model in (sphinx_jax.load(run), sphinx_jax.load(source, changes=changes, ids='v5')):
    assert (model.config.perceiver.eps, model.config.vision.patch_rule) == (1e-5, 'any')
    assert model.tokenizer.encode(' a') == model.tokenizer.encode('a')
  assert sphinx_jax.load(run, ids='v4').tokenizer.ids == 'v4'
  convert.export_checkpoint(str(run), str(tmp_path / 'back'), 'hf')
  config = json.loads((tmp_path / 'back' / 'config.json').read_text())
  assert config['perceiver_config']['rms_norm_eps'] == 1e-5
  kept = json.loads((source / 'config.json').read_text())['text_config']
  assert kept['sliding_window'] >= kept['max_position_embeddings']  # So it decides nothing.
  assert (kept | {'sliding_window': None}).items() <= config['text_config'].items()
  other = sphinx_jax.load(source)
  assert other.tokenizer.encode(' a') != other.tokenizer.encode('a')


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'perciever.eps': 1e-5}, "'perciever.eps'.*did you mean 'perceiver.eps'"),
    ({'perceiver.epsilon': 1e-5}, "perceiver.epsilon.*did you mean 'eps'"),
    ({'perceiver.eps': 'small'}, 'perceiver.eps'),
    ({'vision.patch_rule': 'most'}, 'vision.patch_rule.*all, any'),
    ({'perceiver.queries': 5}, 'perceiver.queries=5.*keep the shapes'),
  ],
)
def test_settings_that_weights_cannot_have_are_refused(changes, words):
  with pytest.raises(errors.SphinxError, match=words):
    sphinx_jax.load(golden.FOLDER / 'model', changes=changes)


def test_a_setting_without_a_value_is_refused(tmp_path, capsys):
  flags = [f'--source={golden.FOLDER}/model', f'--output={tmp_path}/run', '--set=perceiver.eps']
  assert "--set: got 'perceiver.eps', expected NAME=VALUE" in command.error(
    capsys, 'convert', *flags
  )
