import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from sphinx_jax.checkpoint.foreign import safetensors as ours
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

DTYPES = [
  torch.float64,
  torch.float32,
  torch.float16,
  torch.bfloat16,
  torch.int64,
  torch.int32,
  torch.int16,
  torch.int8,
  torch.uint8,
  torch.bool,
]


def every_kind() -> dict[str, torch.Tensor]:
  # Narrow dtypes first.
  tensors = {f'dtype.{dtype}': torch.randn(3, 5).mul(3).to(dtype) for dtype in reversed(DTYPES)}
  return tensors | {
    'empty': torch.zeros(0, 4),
    'scalar': torch.tensor(2.5),
    'ümläut': torch.ones(2),
  }


def raw(tensor: torch.Tensor) -> bytes:
  return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def same(opened: dict[str, Tensor], theirs: dict[str, torch.Tensor]) -> bool:
  return opened.keys() == theirs.keys() and all(
    (array := opened[key].read()).shape == opened[key].shape == tuple(tensor.shape)
    and array.dtype == opened[key].dtype
    and f'torch.{array.dtype}' == str(tensor.dtype)
    and array.tobytes() == raw(tensor)
    for key, tensor in theirs.items()
  )


def tensor(array: np.ndarray) -> Tensor:
  return Tensor(array.shape, array.dtype, array.copy)


def three_tensors() -> dict[str, Tensor]:
  """Three tensors of 24 bytes."""
  return {key: tensor(np.arange(6, dtype=np.float32) + i) for i, key in enumerate('abc')}


@pytest.fixture
def sharded(tmp_path):
  """A folder with a shard for each of a, b, c."""
  ours.write_safetensors(tmp_path / 'model', three_tensors(), shard_bytes=24)
  return tmp_path / 'model'


def reindex(folder, **weight_map):
  index = json.loads((folder / ours.INDEX).read_text())
  index['weight_map'].update(weight_map)
  (folder / ours.INDEX).write_text(json.dumps(index))


def by_hand(path, header, data: bytes = b'', length: int | None = None):
  text = (header if isinstance(header, str) else json.dumps(header)).encode()
  path.write_bytes((len(text) if length is None else length).to_bytes(8, 'little') + text + data)
  return path


def entry(shape, begin, end, dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


def test_what_the_library_writes_is_read_bit_for_bit(tmp_path):
  tensors = every_kind()
  safetensors.torch.save_file(tensors, tmp_path / 'a.safetensors', metadata={'format': 'pt'})
  assert same(ours.open_safetensors(tmp_path / 'a.safetensors'), tensors)


@pytest.mark.parametrize('shard_bytes, files', [(5e9, 1), (200, 3), (1, 13)])
def test_the_library_reads_what_we_write(tmp_path, shard_bytes, files):
  tensors = every_kind()
  safetensors.torch.save_file(tensors, tmp_path / 'a.safetensors')
  opened = ours.open_safetensors(tmp_path / 'a.safetensors')
  ours.write_safetensors(tmp_path / 'out', {key: opened[key] for key in tensors}, shard_bytes)
  names = sorted(path.name for path in (tmp_path / 'out').iterdir())
  if files == 1:
    assert names == ['model.safetensors']
  else:
    shards = [f'model-{i + 1:05d}-of-{files:05d}.safetensors' for i in range(files)]
    assert names == [*shards, ours.INDEX]
    index = json.loads((tmp_path / 'out' / ours.INDEX).read_text())
    assert index['metadata']['total_size'] == sum(tensor.nbytes for tensor in tensors.values())
    held = {
      key: name for name in shards for key in safetensors.torch.load_file(tmp_path / 'out' / name)
    }
    assert held == index['weight_map']
  merged = {}
  for name in names:
    if name != ours.INDEX:
      merged |= safetensors.torch.load_file(tmp_path / 'out' / name)
      with safetensors.safe_open(tmp_path / 'out' / name, 'pt') as file:
        assert file.metadata() == {'format': 'pt'}
  assert merged.keys() == tensors.keys() and all(
    raw(merged[key]) == raw(tensors[key]) for key in tensors
  )
  assert same(ours.open_safetensors(tmp_path / 'out'), tensors)


def test_every_tensor_is_aligned_in_the_file(tmp_path):
  mixed = {
    'byte': tensor(np.ones(3, np.uint8)),
    'half': tensor(np.ones(3, ml_dtypes.bfloat16)),
    'wide': tensor(np.ones(3)),
  }
  ours.write_safetensors(tmp_path, mixed)
  data = (tmp_path / 'model.safetensors').read_bytes()
  length = int.from_bytes(data[:8], 'little')
  for key, header in json.loads(data[8 : 8 + length]).items():
    if key != '__metadata__':
      assert (8 + length + header['data_offsets'][0]) % mixed[key].dtype.itemsize == 0


def test_others_may_read_our_files_as_they_may_read_any_new_file(sharded):
  (sharded / 'new').touch()
  modes = {path.stat().st_mode for path in sharded.iterdir()}
  assert len(modes) == 1


def test_files_beside_the_index_are_left_alone(sharded):
  by_hand(sharded / 'consolidated.safetensors', {'a': entry([1], 0, 4)}, bytes(4))
  assert list(ours.open_safetensors(sharded)) == ['a', 'b', 'c']


def test_files_without_an_index_are_joined(tmp_path):
  for key, part in three_tensors().items():
    by_hand(tmp_path / f'{key}.safetensors', {key: entry([6], 0, 24)}, part.read().tobytes())
  opened = ours.open_safetensors(tmp_path)
  assert list(opened) == ['a', 'b', 'c'] and opened['c'].read().tolist() == [2, 3, 4, 5, 6, 7]


def test_a_missing_shard_is_named(sharded):
  (sharded / 'model-00002-of-00003.safetensors').unlink()
  with pytest.raises(
    errors.SphinxError, match='1 of 3 shards missing: model-00002-of-00003.safetensors'
  ):
    ours.open_safetensors(sharded)


def test_shards_without_their_index_are_refused(sharded):
  (sharded / ours.INDEX).unlink()
  with pytest.raises(errors.SphinxError, match=f'3 .safetensors files and no {ours.INDEX}'):
    ours.open_safetensors(sharded)


@pytest.mark.parametrize(
  'weight_map, message',
  [
    ({'d': 'model-00001-of-00003.safetensors'}, '1 keys that their files lack: d'),
    ({'a': 'model-00002-of-00003.safetensors'}, 'keys that their files lack: a'),
    ({'a': '../a.safetensors'}, r"shard named '\.\./a.safetensors'"),
    ({'a': '/etc/passwd'}, 'shard named'),
    ({'a': 3}, 'index.json: got a damaged'),
  ],
)
def test_an_index_that_differs_from_its_files_is_refused(sharded, weight_map, message):
  reindex(sharded, **weight_map)
  with pytest.raises(errors.SphinxError, match=message):
    ours.open_safetensors(sharded)


@pytest.mark.parametrize(
  'text',
  ['', '{', '[]', '{}', '{"weight_map": 3}', '[' * 100_000],
)
def test_a_damaged_index_is_refused(sharded, text):
  (sharded / ours.INDEX).write_text(text)
  with pytest.raises(errors.SphinxError, match='index.json: got a damaged'):
    ours.open_safetensors(sharded)


def test_a_key_in_two_files_is_refused_with_both_names(sharded):
  by_hand(sharded / 'x.safetensors', {'b': entry([1], 0, 4), 'd': entry([1], 4, 8)}, bytes(8))
  reindex(sharded, d='x.safetensors')
  with pytest.raises(
    errors.SphinxError,
    match='1 keys both in model-00002-of-00003.safetensors and in x.safetensors: b',
  ):
    ours.open_safetensors(sharded)


@pytest.mark.parametrize(
  'header, data',
  [
    ({'a': entry([2], 0, 8), 'b': entry([2], 4, 12)}, 12),  # They overlap.
    ({'a': entry([2], 0, 8), 'b': entry([2], 12, 20)}, 20),  # A hole.
    ({'a': entry([2], 4, 12)}, 12),  # A hole in front.
    ({'a': entry([3], 0, 8)}, 8),  # The shape needs more.
    ({'a': entry([1], 0, 8)}, 8),  # The shape needs less.
    ({'a': entry([2], 0, 8)}, 7),  # Cut short.
    ({'a': entry([2], 0, 8)}, 9),  # Something behind.
    ({'a': entry([1 << 40], 0, 1 << 42)}, 8),
    ({'a': entry([-1, -2], 0, 8)}, 8),
    ({'a': entry([True, 2], 0, 8)}, 8),
    ({'a': entry([2.0], 0, 8)}, 8),
    ({'a': entry([2], 8, 0)}, 8),
    ({'a': entry('2', 0, 8)}, 8),
    ({'a': {'dtype': 'F32', 'shape': [2]}}, 8),
    ({'a': 3}, 0),
    ([], 0),
    ('{', 0),
    ('[' * 100_000, 0),
  ],
)
def test_an_impossible_header_is_refused(tmp_path, header, data):
  path = by_hand(tmp_path / 'a.safetensors', header, bytes(data))
  with pytest.raises(errors.SphinxError, match='a.safetensors: got a damaged'):
    ours.open_safetensors(path)


@pytest.mark.parametrize(
  'content',
  [b'', b'1234567', (1 << 62).to_bytes(8, 'little'), (101 << 20).to_bytes(8, 'little') + b'{}'],
)
def test_an_absent_header_is_refused(tmp_path, content):
  (tmp_path / 'a.safetensors').write_bytes(content)
  with pytest.raises(errors.SphinxError, match='a.safetensors: got a damaged'):
    ours.open_safetensors(tmp_path / 'a.safetensors')


def test_a_dtype_that_numpy_lacks_is_named(tmp_path):
  path = by_hand(tmp_path / 'a.safetensors', {'w': entry([4], 0, 4, 'F8_E4M3')}, bytes(4))
  with pytest.raises(
    errors.SphinxError, match='tensor w: got dtype F8_E4M3, expected one of F64, F32'
  ):
    ours.open_safetensors(path)


def test_a_file_cut_after_it_was_opened_is_noticed(tmp_path):
  path = by_hand(tmp_path / 'a.safetensors', {'a': entry([2], 0, 8)}, bytes(8))
  opened = ours.open_safetensors(path)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(errors.SphinxError, match='a.safetensors: got a damaged.*whole buffer'):
    opened['a'].read()


@pytest.mark.parametrize('name', ['nothing.safetensors', '.'])
def test_no_file_is_an_error(tmp_path, name):
  with pytest.raises(errors.SphinxError, match='no such file|0 .safetensors files'):
    ours.open_safetensors(tmp_path / name)


def test_a_folder_that_holds_safetensors_is_not_written_to(sharded):
  before = {path.name: path.read_bytes() for path in sharded.iterdir()}
  with pytest.raises(errors.SphinxError, match='old and new shards would mix'):
    ours.write_safetensors(sharded, three_tensors())
  assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


def test_an_interrupted_write_leaves_no_file_and_can_be_run_again(tmp_path):
  def fails():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    ours.write_safetensors(
      tmp_path, three_tensors() | {'d': Tensor((3,), np.dtype(np.float32), fails)}, shard_bytes=24
    )
  assert not list(tmp_path.iterdir())
  (tmp_path / 'model-00001-of-00003.safetensors.partial').write_bytes(
    b'left by a process that was killed'
  )
  ours.write_safetensors(tmp_path, three_tensors(), shard_bytes=24)
  assert len(list(tmp_path.iterdir())) == 4 and list(ours.open_safetensors(tmp_path)) == [
    'a',
    'b',
    'c',
  ]


def test_a_dtype_that_the_format_lacks_is_named(tmp_path):
  with pytest.raises(errors.SphinxError, match='tensor w: got dtype complex64'):
    ours.write_safetensors(tmp_path, {'w': tensor(np.ones(2, np.complex64))})


def test_a_shard_is_in_memory_once_while_it_is_written(tmp_path):
  """The library does not copy the arrays, and reading holds one tensor."""
  size, small = 8 << 20, 1 << 20
  tensors = {
    f'{i}': Tensor((size // 4,), np.dtype(np.float32), lambda: np.zeros(size // 4, np.float32))
    for i in range(6)
  }
  tracemalloc.start()
  try:
    ours.write_safetensors(tmp_path, tensors, shard_bytes=2 * size)
    assert tracemalloc.get_traced_memory()[1] < 2 * size + small
    tracemalloc.reset_peak()
    assert sum(tensor.read().sum() for tensor in ours.open_safetensors(tmp_path).values()) == 0
    assert tracemalloc.get_traced_memory()[1] < size + small
  finally:
    tracemalloc.stop()


def test_opening_a_file_reads_only_its_header(tmp_path):
  """A sparse file larger than memory opens at once."""
  size = 64 << 30
  path = by_hand(tmp_path / 'a.safetensors', {'a': entry([size], 0, size, 'U8')})
  with open(path, 'ab') as file:
    file.truncate(path.stat().st_size + size)
  tensor = ours.open_safetensors(path)['a']
  assert (tensor.shape, tensor.dtype) == ((size,), np.uint8)


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16, np.int8])
def test_rows_are_read_alone(tmp_path, dtype):
  values = {name: np.arange(60).reshape(10, 3, 2).astype(dtype) + i for i, name in enumerate('ab')}
  ours.write_safetensors(tmp_path, {key: tensor(value) for key, value in values.items()})
  for key, opened in ours.open_safetensors(tmp_path).items():
    for rows in (slice(0, 4), slice(9, 10), slice(0, 10)):
      np.testing.assert_array_equal(opened.read_rows(rows), values[key][rows])
  file = next(tmp_path.glob('*.safetensors'))
  with open(file, 'rb+') as shortened:
    shortened.truncate(file.stat().st_size - 1)
  with pytest.raises(errors.SphinxError, match='damaged or incomplete'):
    opened.read_rows(slice(8, 10))
