"""Folders of Mixtral and SPHINX-MoE: shards, names, there and back, and bad ones."""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest

from sphinx_jax import convert
from sphinx_jax.checkpoint import stream
from sphinx_jax.checkpoint.foreign import assemble, pth_writer, safetensors, shards, sources
from sphinx_jax.core import errors
from tests import release

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'models'
SPARSE, BASE = GOLDEN / 'mixtral_sparse_ens' / 'mp2', GOLDEN / 'mixtral' / 'mp2'
HF, FUSED = GOLDEN / 'mixtral_hf', GOLDEN / 'mixtral_hf_fused'


def refuse(text):
  raise AssertionError(f'nothing differs, but: {text}')


def refused(path, **options):
  with pytest.raises(errors.SphinxError) as caught:
    convert.open_sources([str(path)], **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def read(arrays):
  return {path: array.read(()) for path, array in arrays.items()}


def weights(folder):
  """Path -> array of our parameters."""
  return read(assemble.arrays(convert.open_sources([str(folder)])))


def of_ranks(folder):
  """Every tensor of every shard."""
  return [
    {key: tensor.read() for key, tensor in rank.items()}
    for rank in shards.open_sets(folder)['official']
  ]


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for key, x in a.items():
    assert (x.shape, x.dtype, x.tobytes()) == (b[key].shape, b[key].dtype, b[key].tobytes()), key


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
  """The golden SPHINX-MoE as a checkpoint."""
  output = tmp_path_factory.mktemp('checkpoint') / 'moe'
  convert.import_checkpoint(convert.open_sources([str(SPARSE)]), output)
  return output


def test_the_shards_merge_to_the_official_tensors():
  keys = json.loads((SPARSE.parent / 'keys.json').read_text())
  merged = shards.merge(shards.open_sets(SPARSE)['official'], refuse)
  assert merged.keys() == keys.keys()
  for key, facts in keys.items():
    whole = merged[key].read().astype(np.float32)
    assert whole.shape == merged[key].shape == tuple(facts['shape']), key
    assert hashlib.sha256(whole.tobytes()).hexdigest() == facts['sha256'], key


def test_an_export_has_the_bits_of_the_official_shards(ours, tmp_path):
  convert.export_checkpoint(ours, tmp_path / 'back', 'official', shards=2)
  for back, official in zip(of_ranks(tmp_path / 'back'), of_ranks(SPARSE), strict=True):
    assert_equal(back, official)
  for name in ('config.json', 'meta.json'):
    assert json.loads((tmp_path / 'back' / name).read_text()) == json.loads(
      (SPARSE / name).read_text()
    )


def test_shards_are_those_that_divide_the_heads(ours, tmp_path):
  with pytest.raises(errors.SphinxError, match='2 key-value heads for 4 shards'):
    convert.export_checkpoint(ours, tmp_path / 'back', 'official', shards=4)
  assert not (tmp_path / 'back').exists()


def test_four_shards_and_back(tmp_path):
  """The official code cannot split a sparse checkpoint (docs/official_sphinx.md, "Shards")."""
  merged = shards.merge(shards.open_sets(SPARSE)['official'], refuse)
  whole = {key: tensor.read() for key, tensor in merged.items()}
  rng = np.random.default_rng(0)
  for key in whole:
    if key.endswith(('attention.wk.weight', 'attention.wv.weight')):
      whole[key] = rng.normal(size=(48, 48)).astype(whole[key].dtype)
  config = json.loads((SPARSE / 'config.json').read_text()) | {'n_kv_heads': 4}
  one = release.write_official(tmp_path / 'one', whole, config=config, variant='mixtral_sparse_ens')
  convert.import_checkpoint(convert.open_sources([str(one)]), tmp_path / 'ours')
  convert.export_checkpoint(tmp_path / 'ours', tmp_path / 'four', 'official', shards=4)
  ranks = of_ranks(tmp_path / 'four')
  key = 'llma.layers.1.feed_forward.w1'
  of_experts = whole[key].reshape(4, 64, 48)  # 4 experts, of which a rank has 16 of 64 rows.
  for rank, part in enumerate(ranks):
    expected = of_experts[:, 16 * rank : 16 * (rank + 1)].reshape(64, 48)
    np.testing.assert_array_equal(part[key], expected)
    router = 'llma.layers.1.feed_forward.gate.weight'
    np.testing.assert_array_equal(part[router], whole[router])
  assert_equal(weights(tmp_path / 'four'), weights(one))


def of_llm(arrays):
  return {path: x for path, x in arrays.items() if path.startswith('llm/')}


def test_all_forms_hold_the_same_language_model(tmp_path):
  expected = of_llm(weights(SPARSE))
  tensors = {
    key.replace('feed_forward', 'block_sparse_moe'): tensor
    for key, tensor in sources.open_source(SPARSE).tensors.items()
    if key.startswith(('layers.', 'norm.', 'output.', 'tok_embeddings.'))
  }
  mistral = tmp_path / 'mistral'
  mistral.mkdir()
  pth_writer.write_pth(mistral / 'consolidated.00.pth', tensors)
  params = json.loads((BASE / 'config.json').read_text()) | {'max_seq_len': 0, 'max_batch_size': 0}
  (mistral / 'params.json').write_text(json.dumps(params))
  kinds = {
    BASE: 'Mixtral of the official code, base',
    HF: 'Mixtral of HF transformers',
    FUSED: 'Mixtral of HF transformers 5',
    mistral: 'Mixtral as Mistral names it',
  }
  for folder, kind in kinds.items():
    source = sources.open_source(folder)
    assert source.kind == kind and source.settings['name'] == 'mixtral'
    assert_equal(weights(folder), expected)
  assert sources.open_source(mistral).settings['max_length'] == 32768
  # The official trainer multiplies the base model's loss by its weight a second time.
  assert sources.open_source(BASE).settings['balance_weight'] == pytest.approx(0.01)


@pytest.mark.parametrize('folder', [HF, FUSED, BASE])
def test_an_export_to_transformers_has_the_classic_names(folder, tmp_path):
  assembly = convert.open_sources([str(folder)])
  convert.import_checkpoint(assembly, tmp_path / 'ours')
  convert.export_checkpoint(tmp_path / 'ours', tmp_path / 'back', 'hf')
  back, classic = (safetensors.open_safetensors(path) for path in (tmp_path / 'back', HF))
  assert_equal(*({key: x.read() for key, x in tensors.items()} for tensors in (back, classic)))
  config = json.loads((tmp_path / 'back' / 'config.json').read_text())
  if folder == HF:
    assert config == json.loads((HF / 'config.json').read_text())
  again = convert.open_sources([str(tmp_path / 'back')]).config
  for name, value in assembly.config.llm.items():
    assert again.llm[name] == value, name


def test_a_piece_is_the_experts_of_one_layer():
  arrays = assemble.arrays(convert.open_sources([str(SPARSE)]))
  stack = arrays['llm/layers/feed_forward/w1/kernel']
  assert stack.shape == (2, 4, 48, 64) and stack.layers == 2
  assert stack.read((1,)).shape == (4, 48, 64)
  full = stream.Array((32, 8, 4096, 14336), np.dtype('float16'), stack.read, layers=32)
  assert {size for _, size in full.pieces()} == {2 * 8 * 4096 * 14336}


def test_missing_shards_are_named(tmp_path):
  folder = shutil.copytree(SPARSE, tmp_path / 'folder')
  (folder / 'consolidated.01-of-02.model.pth').unlink()
  message = refused(folder)
  assert '1 shards of 2; missing: consolidated.01-of-02.model.pth' in message


def test_shards_of_both_official_forms_are_refused(tmp_path):
  folder = shutil.copytree(SPARSE, tmp_path / 'folder')
  name = 'consolidated.01-of-02.model.pth'
  shutil.copy(BASE / name, folder / name)
  message = refused(folder)
  assert 'experts in two forms: shard 0 sparse (w1 of all experts), shard 1 base' in message


def test_an_expert_in_two_shards_is_refused(tmp_path):
  folder = shutil.copytree(BASE, tmp_path / 'folder')
  first, second = (folder / f'consolidated.0{rank}-of-02.model.pth' for rank in (0, 1))
  shutil.copy(first, second)
  assert 'every expert in one shard' in refused(folder)


@pytest.mark.parametrize(
  'folder, changes, words',
  [
    (SPARSE, {'moe': None}, "no 'moe'"),
    (BASE, {'moe': None}, "no 'moe'"),
    (SPARSE, {'moe': {'num_experts': 4}}, "no 'num_experts_per_tok'"),
    (SPARSE, {'moe': {'num_experts': 4, 'num_experts_per_tok': 5}}, 'num_experts_per_tok 5'),
    (SPARSE, {'moe': {'num_experts': 8, 'num_experts_per_tok': 2}}, 'expected (8, 48)'),
    (HF, {'num_local_experts': 3}, 'experts.3.w1.weight'),
    (HF, {'num_experts_per_tok': 7}, 'num_experts_per_tok 7'),
    (HF, {'router_jitter_noise': 0.1}, 'router_jitter_noise 0.1'),
  ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, folder, changes, words):
  copy = shutil.copytree(folder, tmp_path / 'folder')
  config = json.loads((copy / 'config.json').read_text()) | changes
  (copy / 'config.json').write_text(json.dumps(config))
  assert words in refused(copy)


def test_a_fresh_model_takes_its_variant_from_the_language_model():
  assert 'give the weights of clip, convnext, dinov2, qformer too' in refused(
    HF, variant='mixtral_sparse_ens'
  )
