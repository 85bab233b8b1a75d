"""Refusals of the conversion: one clear line each, before anything is written."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from sphinx_jax import convert
from sphinx_jax.core import errors
from tests import command, release
from tests.generate import small

ROOT = pathlib.Path(__file__).parent.parent
WEIGHTS = 'consolidated.00-of-01.model.pth'


def config(**changes):
  return lambda folder: (folder / 'config.json').write_text(json.dumps(release.CONFIG | changes))


def without(name):
  kept = {key: value for key, value in release.CONFIG.items() if key != name}
  return lambda folder: (folder / 'config.json').write_text(json.dumps(kept))


def text(name, content):
  return lambda folder: (folder / name).write_text(content)


def cut(folder):
  (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


class Code:
  def __reduce__(self):
    return os.system, ('touch /tmp/sphinx_jax_was_run',)


def runs_code(folder):
  torch.save({'model': {'llma.norm.weight': torch.ones(3), 'llma.x': Code()}}, folder / WEIGHTS)


def tensor(key, change):
  """Saves the weights with one of them changed (None: without it), by torch."""

  def spoil(folder):
    model = torch.load(folder / WEIGHTS, weights_only=True)['model']
    value = change(model.pop(key))
    torch.save({'model': model if value is None else model | {key: value}}, folder / WEIGHTS)

  return spoil


def one_shard_of_two(folder):
  (folder / WEIGHTS).rename(folder / 'consolidated.01-of-02.model.pth')


def nothing(folder):
  for file in folder.iterdir():
    file.unlink()


@pytest.fixture(scope='module')
def arrays():
  return release.tensors(release.official_shapes('llama_ens_light'), np.float16)


@pytest.fixture
def folder(arrays, tmp_path):
  return release.write_official(tmp_path / 'source', arrays)


def refused(call, output) -> str:
  """Returns the one line of the error that `call` raises; nothing may be written."""
  with pytest.raises(errors.SphinxError) as caught:
    call()
  message = str(caught.value)
  assert (
    '\n' not in message and ': got ' in message and ', expected ' in message and '; ' in message
  )
  assert not output.exists()
  return message


SPOILED = {
  'truncated': (cut, [WEIGHTS, 'copy it again']),
  'a web page': (text(WEIGHTS, '<!DOCTYPE html><html>Sign in</html>'), [WEIGHTS, 'web page']),
  'a git-lfs pointer': (
    text(WEIGHTS, 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'),
    ['git-lfs pointer', 'git lfs pull'],
  ),
  'a pickle that would run code': (runs_code, [f'{os.system.__module__}.system', 'run code']),
  'a missing shard': (one_shard_of_two, ['missing', 'consolidated.00-of-02.model.pth']),
  'an empty folder': (nothing, ['a folder with []', 'consolidated*.pth']),
  'a missing tensor': (
    tensor('llma.layers.1.attention.wo.weight', lambda x: None),
    ['missing layers.1.attention.wo.weight'],
  ),
  'a missing tensor of an encoder': (
    tensor('llma.dinov2_vitg14.pos_embed', lambda x: None),
    ['dinov2', 'pos_embed'],
  ),
  'a wrong shape': (
    tensor('llma.layers.1.attention.wo.weight', lambda x: x[:, :8]),
    ['layers.1.attention.wo.weight: shape (16, 8), expected (16, 16)'],
  ),
  'layers of two dtypes': (
    tensor('llma.layers.1.attention.wo.weight', lambda x: x.float()),
    ['layers.{}.attention.wo.weight: layers of float16 and float32'],
  ),
  'too few layers in the config': (config(n_layers=1), ['left over layers.1.']),
  'too many layers in the config': (config(n_layers=3), ['missing layers.2.']),
  'another width': (config(dim=32), ['tok_embeddings.weight: shape (512, 16), expected (512, 32)']),
  'another vocabulary in the config': (
    config(vocab_size=600),
    ['tok_embeddings.weight: shape (512, 16), expected (600, 16)'],
  ),
  'another feed-forward width': (
    config(multiple_of=64),
    ['feed_forward.w1.weight: shape (48, 16), expected (64, 16)'],
  ),
  'other key-value heads': (
    config(n_kv_heads=2),
    ['attention.wk.weight: shape (16, 16), expected (8, 16)'],
  ),
  'no number of heads': (without('n_heads'), ['config.json', "no 'n_heads'"]),
  'heads that do not divide the width': (config(n_heads=3), ['width 16 and 3 heads']),
  'no heads': (config(n_heads=0), ['config.json', 'n_heads 0', 'a whole number above 0']),
  'heads in words': (config(n_heads='four'), ['config.json', "n_heads 'four'"]),
  'half a layer': (config(n_layers=1.5), ['config.json', 'n_layers 1.5']),
  'a config that is no JSON': (text('config.json', '{"dim": 16,'), ['config.json', 'no JSON']),
  'a config that is no object': (text('config.json', '[1]'), ['config.json', 'JSON list']),
  'no config': (lambda folder: (folder / 'config.json').unlink(), ['config.json', 'no such file']),
  'a type that is nearly one': (
    text('meta.json', '{"llama_type": "llama_ens_ligth"}'),
    ["did you mean 'llama_ens_light'?"],
  ),
  'a type that the project lacks': (
    text('meta.json', '{"llama_type": "llama_ens_peft"}'),
    ["'llama_ens_peft'", 'one of llama_ens'],
  ),
  'a type that is no name': (text('meta.json', '{"llama_type": ["llama_ens"]}'), ['llama_type']),
  'another type than the weights': (text('meta.json', '{"llama_type": "llama_ens"}'), ['clip']),
  'no type': (text('meta.json', '{}'), ['meta.json', 'llama_type', '--variant']),
  'a type that is no JSON': (text('meta.json', 'llama_ens_light'), ['meta.json', 'no JSON']),
  'no meta.json': (lambda folder: (folder / 'meta.json').unlink(), ['no meta.json', '--variant']),
  'another tokenizer': (
    lambda folder: (folder / 'tokenizer.model').write_bytes(small.tokenizer().model_bytes),
    ['a tokenizer of 320 tokens', '512'],
  ),
  'a damaged tokenizer': (text('tokenizer.model', 'version https://git-lfs'), ['tokenizer']),
  'no tokenizer': (
    lambda folder: (folder / 'tokenizer.model').unlink(),
    ['no tokenizer.model', '--tokenizer=FILE'],
  ),
}


@pytest.mark.parametrize('case', SPOILED)
def test_a_spoiled_folder_is_refused(folder, tmp_path, case):
  spoil, words = SPOILED[case]
  spoil(folder)
  output = tmp_path / 'ours'
  message = refused(
    lambda: convert.import_checkpoint(convert.open_sources([folder]), output), output
  )
  assert all(word in message for word in words), message
  assert not pathlib.Path('/tmp/sphinx_jax_was_run').exists()


def test_two_sets_of_shards_in_one_folder_are_refused(arrays, folder, tmp_path):
  release.write_official(folder, arrays, 2)
  assert 'sets of 1 and of 2' in refused(lambda: convert.open_sources([folder]), tmp_path / 'ours')


@pytest.mark.parametrize(
  'flags, words',
  [
    ([], ['--source', 'nothing']),
    (['--source={}/nowhere', '--output={}/ours'], ['nowhere', 'no such file or folder']),
    (['--source={}', '--output={}/ours', '--to=offical'], ['--to', 'official']),
  ],
)
def test_the_command_ends_with_one_line(tmp_path, flags, words):
  done = subprocess.run(
    [sys.executable, '-m', 'sphinx_jax.convert', *(flag.format(tmp_path) for flag in flags)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  lines = done.stderr.strip().splitlines()
  assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith('error: '), done.stderr
  assert all(word in lines[0] for word in words), done.stderr
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  'flags, words',
  [
    ('--shards=2 --output={}/ours', ['--shards', 'without --to']),
    ('--to=hf --tokenizer=x --variant=llama_ens --output={}/ours', ['--variant and --tokenizer']),
    ('--source={},{} --to=hf --output={}/ours', ['a second --source', 'with --to']),
    ('--verify={} --output={}/ours', ['--output', 'with --verify']),
    ('--quantize=int8 --shards=2 --output={}/ours', ['--shards', 'with --quantize']),
    ('--output={}', ['--output', 'the source']),
    ('--source={}/model.pth --output={}', ['--output', 'the source']),
  ],
)
def test_flags_without_effect_are_refused(capsys, tmp_path, flags, words):
  (tmp_path / 'model.pth').touch()
  flags = f'--source={tmp_path} {flags}'.replace('{}', str(tmp_path)).split()
  line = command.error(capsys, 'convert', *flags)
  assert all(word in line for word in words), line
  assert [file.name for file in tmp_path.iterdir()] == ['model.pth']


def test_a_base_or_a_variant_without_effect_is_refused(folder, tmp_path):
  language_model = release.write_meta(tmp_path / 'llama', release.tensors(release.llama_shapes()))
  for options, words in (
    ({'base': folder}, r'--base.*deltas \(\*.model-diff.pth\)'),
    ({'variant': 'llama_ens_light'}, 'model llama_ens_light.*give the weights of convnext'),
    ({'variant': 'lama_ens'}, "did you mean 'llama_ens'"),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      convert.open_sources([language_model], **options)
  with pytest.raises(errors.SphinxError, match='--base'):
    convert.open_sources([folder], base=language_model)


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
  """A checkpoint of a language model alone: 4 heads, feed-forward width 48."""
  place = tmp_path_factory.mktemp('ours')
  source = release.write_meta(place / 'source', release.tensors(release.llama_shapes()))
  convert.import_checkpoint(convert.open_sources([source]), place / 'run')
  return place / 'run'


def test_an_output_that_exists_is_kept(ours, tmp_path):
  found = convert.open_sources([ours.parent / 'source'])
  before = {path: path.stat().st_mtime_ns for path in ours.rglob('*')}
  with pytest.raises(errors.SphinxError, match='holds a checkpoint.*--output'):
    convert.import_checkpoint(found, ours)
  assert {path: path.stat().st_mtime_ns for path in ours.rglob('*')} == before
  (tmp_path / 'mine.txt').write_text('kept')
  for place in (tmp_path, tmp_path / 'mine.txt'):
    with pytest.raises(errors.SphinxError, match='a path that exists already.*--output'):
      convert.export_checkpoint(ours, place, 'hf')
  assert [path.name for path in tmp_path.iterdir()] == ['mine.txt'] and (
    tmp_path / 'mine.txt'
  ).read_text() == 'kept'


@pytest.mark.parametrize(
  'to, shards, words',
  [
    ('official', 1, ['no such model', '--to=hf']),
    ('hf', 2, ['--shards', '1 with --to=hf']),
  ],
)
def test_a_format_that_lacks_the_model_is_refused(ours, tmp_path, to, shards, words):
  output = tmp_path / 'out'
  message = refused(lambda: convert.export_checkpoint(ours, output, to, shards), output)
  assert all(word in message for word in words), message
  assert not any(tmp_path.iterdir())


def test_shards_that_do_not_divide_are_refused(folder, tmp_path):
  convert.import_checkpoint(convert.open_sources([folder]), tmp_path / 'ours')
  for shards in (3, 8):
    output = tmp_path / 'out'
    export = functools.partial(
      convert.export_checkpoint, tmp_path / 'ours', output, 'official', shards
    )
    message = refused(export, output)
    assert f'4 key-value heads for {shards} shards' in message


def test_only_our_checkpoints_are_exported(folder, tmp_path):
  for place, words in ((folder, WEIGHTS), (tmp_path / 'nowhere', 'no such directory')):
    output = tmp_path / 'out'
    export = functools.partial(convert.export_checkpoint, place, output, 'official')
    message = refused(export, output)
    assert message.startswith('checkpoint') and words in message
    assert ('import it first' in message) == (place == folder)
