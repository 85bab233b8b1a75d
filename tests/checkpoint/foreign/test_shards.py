import hashlib
import json
import math
import pathlib
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from sphinx_jax.checkpoint.foreign import pth_writer, shards
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'models' / 'llama_ens'
SHAPES = {  # Width 8, 4 heads of 2, 2 key-value heads, feed-forward 12, vocabulary 10.
  'tok_embeddings.weight': (10, 8),
  'norm.weight': (8,),
  'output.weight': (10, 8),
  'layers.0.attention.wq.weight': (8, 8),
  'layers.0.attention.wk.weight': (4, 8),
  'layers.0.attention.wv.weight': (4, 8),
  'layers.0.attention.wo.weight': (8, 8),
  'layers.0.feed_forward.w1.weight': (12, 8),
  'layers.0.feed_forward.w2.weight': (8, 12),
  'layers.0.feed_forward.w3.weight': (12, 8),
  'layers.0.attention_norm.weight': (8,),
  'clip.visual.transformer.resblocks.0.attn.out_proj.weight': (4, 4),
}


def tensor(array: np.ndarray) -> Tensor:
  return Tensor(array.shape, array.dtype, array.copy)


def model(prefix: str = 'llma.', dtype=np.float32) -> dict[str, Tensor]:
  rng = np.random.default_rng(0)
  return {
    prefix + key: tensor(rng.normal(size=shape).astype(dtype)) for key, shape in SHAPES.items()
  }


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
  return list(a) == list(b) and all(
    a[key].shape == b[key].shape == (x := a[key].read()).shape
    and a[key].dtype == x.dtype
    and x.tobytes() == b[key].read().tobytes()
    for key in a
  )


def refuse(text: str) -> None:
  raise AssertionError(f'nothing differs, but: {text}')


def save(folder, *names: str):
  folder.mkdir(exist_ok=True)
  for name in names:
    pth_writer.write_pth(folder / name, {'w': tensor(np.ones(2))})
  return folder


def test_the_official_shards_merge_to_the_official_tensors():
  keys = json.loads((GOLDEN / 'keys.json').read_text())
  merged = shards.merge(shards.open_sets(GOLDEN / 'mp2')['official'], refuse)
  assert merged.keys() == keys.keys()
  for key, facts in keys.items():
    assert shards.parallel_dim(key) == facts['parallel_dim'] and merged[key].shape == tuple(
      facts['shape']
    ), key
    assert hashlib.sha256(merged[key].read().tobytes()).hexdigest() == facts['sha256'], key


def test_splitting_the_official_model_gives_the_official_shards():
  whole = shards.merge(shards.open_sets(GOLDEN / 'mp1')['official'], refuse)
  for ours, theirs in zip(
    shards.split(whole, 2), shards.open_sets(GOLDEN / 'mp2')['official'], strict=True
  ):
    assert ours.keys() == theirs.keys() and equal(ours, {key: theirs[key] for key in ours})


@pytest.mark.parametrize('prefix', ['', 'llma.'])
@pytest.mark.parametrize('count', [1, 2])
def test_merge_undoes_split(prefix, count):
  whole = model(prefix)
  parts = shards.split(whole, count, kv_heads=2)
  assert parts[0][prefix + 'tok_embeddings.weight'].shape == (10, 8 // count)
  assert parts[-1][prefix + 'layers.0.feed_forward.w1.weight'].shape == (12 // count, 8)
  assert parts[-1][prefix + 'layers.0.feed_forward.w2.weight'].shape == (8, 12 // count)
  assert equal(shards.merge(parts, refuse), whole)


def test_replicas_that_differ_are_reported_when_read_and_rank_0_is_used():
  key, lines = 'llma.layers.0.attention_norm.weight', []
  parts = shards.split(model(), 2)
  other = parts[1][key].read()
  other[3] += 0.25
  merged = shards.merge([parts[0], parts[1] | {key: tensor(other)}], lines.append)
  assert not lines
  assert equal(merged, model())
  assert lines == [f'{key}: the copies in shards 0 and 1 differ by up to 0.25; shard 0 is used']


def test_replicas_with_the_same_nan_do_not_differ():
  nan = {
    'clip.logit_scale': tensor(np.array(np.nan, np.float16)),
    'image_mean': tensor(np.array([np.nan, 1])),
  }
  assert np.isnan(shards.merge([nan, nan], refuse)['image_mean'].read()[0])
  assert np.isnan(shards.merge([nan, nan], refuse)['clip.logit_scale'].read())


def change(key, shape=None, dtype=np.float32):
  def changed(part):
    part = dict(part)
    if shape is None:
      del part[key]
    else:
      part[key] = tensor(np.zeros(shape, dtype))
    return part

  return changed


@pytest.mark.parametrize(
  'rank, edit, message',
  [
    (1, change('llma.norm.weight'), 'llma.norm.weight is missing in shard 1'),
    (0, change('llma.norm.weight'), 'llma.norm.weight is missing in shard 0'),
    (
      1,
      change('llma.norm.weight', (9,)),
      r'llma.norm.weight float32\[8\] in shard 0, float32\[9\] in shard 1',
    ),
    (
      1,
      change('llma.norm.weight', (8,), np.float16),
      r'float32\[8\] in shard 0, float16\[8\] in shard 1',
    ),
    (
      1,
      change('llma.output.weight', (4, 8)),
      r'llma.output.weight float32\[5, 8\] in shard 0, float32\[4, 8\] in shard 1',
    ),
  ],
)
def test_shards_that_do_not_fit_are_named(rank, edit, message):
  parts = shards.split(model(), 2)
  parts[rank] = edit(parts[rank])
  with pytest.raises(errors.SphinxError, match=message):
    shards.merge(parts, refuse)


def test_a_missing_last_shard_of_metas_shows_in_the_width():
  with pytest.raises(
    errors.SphinxError,
    match='3 shards with 2 columns of tok_embeddings each, expected 8 columns together',
  ):
    shards.merge(four_ranks()[:3], refuse)


def four_ranks() -> list[dict[str, Tensor]]:
  keys = ('tok_embeddings.weight', 'norm.weight')
  return shards.split({key: model('')[key] for key in keys}, 4)


def test_a_vocabulary_split_over_ranks_is_refused():
  part = {'tok_embeddings.weight': tensor(np.ones((5, 8))), 'norm.weight': tensor(np.ones(8))}
  with pytest.raises(
    errors.SphinxError, match='2 shards with 8 columns.*LLaMA-3 splits its vocabulary'
  ):
    shards.merge([part, part], refuse)


@pytest.mark.parametrize(
  'count, heads, message',
  [
    (4, 2, '2 key-value heads for 4 shards'),
    (
      3,
      None,
      r'not divide by 3: llma.tok_embeddings.weight \[10, 8\] in dimension 1, llma.output.weight',
    ),
  ],
)
def test_a_number_of_shards_that_does_not_divide_is_refused(count, heads, message):
  with pytest.raises(errors.SphinxError, match=message):
    shards.split(model(), count, kv_heads=heads)


def test_reading_a_merged_tensor_reads_each_part_once_and_holds_the_whole_and_one_part():
  reads = []

  def part(rank):
    def read():
      reads.append(rank)
      return np.full((1 << 18, 4), rank, np.float32)

    return Tensor((1 << 18, 4), np.dtype(np.float32), read)

  for key, held in (
    ('output.weight', 4 + 1),
    ('layers.0.attention.wo.weight', 4 + 1),
    ('vision.weight', 2),
  ):
    reads.clear()
    merged = shards.merge([{key: part(rank)} for rank in range(4)], lambda text: None)
    assert not reads
    tracemalloc.start()
    try:
      merged[key].read()
      assert tracemalloc.get_traced_memory()[1] < held * (4 << 20) + (4 << 20)
    finally:
      tracemalloc.stop()
    assert sorted(reads) == [0, 1, 2, 3]


@pytest.mark.parametrize(
  'names, kinds',
  [
    (
      ['consolidated.00-of-02.model.pth', 'consolidated.01-of-02.model.pth', 'config.json'],
      {'official': 2},
    ),
    (['consolidated.00.pth', 'consolidated.01.pth', 'params.json'], {'meta': 2}),
    (['consolidated.00-of-01.model-diff.pth', 'consolidated.00.pth'], {'meta': 1, 'diff': 1}),
    (['consolidated.00-of-01.model.pth.partial', 'optimizer.pth'], {}),
  ],
)
def test_the_shard_sets_of_a_folder_are_found_in_rank_order(tmp_path, names, kinds):
  found = shards.find_sets(save(tmp_path / 'model', *names))
  assert {kind: len(paths) for kind, paths in found.items()} == kinds
  assert all(
    f'{rank:02d}' in path.name for paths in found.values() for rank, path in enumerate(paths)
  )
  assert all(
    part['w'].read().tolist() == [1, 1]
    for parts in shards.open_sets(tmp_path / 'model').values()
    for part in parts
  )


@pytest.mark.parametrize(
  'names, message',
  [
    (
      ['consolidated.01-of-04.model.pth', 'consolidated.02-of-04.model.pth'],
      '2 shards of 4; missing: consolidated.00-of-04.model.pth, consolidated.03-of-04.model.pth',
    ),
    (['consolidated.01.pth'], 'missing: consolidated.00.pth'),
    (['consolidated.01-of-02.model-diff.pth'], 'missing: consolidated.00-of-02.model-diff.pth'),
    (['consolidated.00-of-01.model.pth', 'consolidated.00-of-02.model.pth'], 'sets of 1 and of 2'),
    (
      ['consolidated.00-of-01.model.pth', 'consolidated.01-of-01.model.pth'],
      '2 files for 1 shards',
    ),
    (['a.00-of-01.model-diff.pth', 'b.00-of-01.model-diff.pth'], '2 files for 1 shards: a.00'),
  ],
)
def test_a_set_that_is_not_complete_is_refused(tmp_path, names, message):
  with pytest.raises(errors.SphinxError, match=message):
    shards.find_sets(save(tmp_path / 'model', *names))


def test_no_folder_is_an_error(tmp_path):
  with pytest.raises(errors.SphinxError, match='no such folder'):
    shards.find_sets(tmp_path / 'model')


@pytest.mark.parametrize('prefix', ['', 'llma.'])
def test_deltas_are_added_in_float32_and_kept_in_the_dtype_of_the_base(prefix):
  base = {
    prefix + 'w': tensor(np.array([1.0, 2.0], ml_dtypes.bfloat16)),
    prefix + 'only.base': tensor(np.ones(3)),
  }
  # In float32 above half a step of bfloat16 at 1; in bfloat16 just half a step, a tie.
  small = np.array([1.01 * 2**-8, 1.0], np.float32)
  summed = shards.add_diff(
    base, {'llma.w': tensor(small), 'llma.start_img': tensor(np.ones(2, np.float16))}
  )
  assert list(summed) == ['llma.w', 'llma.only.base', 'llma.start_img'] if not prefix else True
  assert set(summed) == {'llma.w', 'llma.only.base', 'llma.start_img'}
  assert summed['llma.w'].dtype == ml_dtypes.bfloat16 and summed['llma.w'].read().tolist() == [
    1 + 2**-7,
    3,
  ]
  assert (
    summed['llma.start_img'].read().dtype == np.float16
    and summed['llma.only.base'].read().dtype == np.float64
  )


def test_a_sum_longer_than_a_piece_is_whole():
  size = math.prod((3, 100_001))
  values = np.arange(size, dtype=np.float32).reshape(3, -1)
  np.testing.assert_array_equal(
    shards.add_diff({'w': tensor(values)}, {'w': tensor(values)})['w'].read(), 2 * values
  )


def test_deltas_for_another_base_are_refused():
  with pytest.raises(errors.SphinxError, match=r'llma.w \[2\] \+ \[3\]'):
    shards.add_diff({'w': tensor(np.ones(2))}, {'llma.w': tensor(np.ones(3))})
