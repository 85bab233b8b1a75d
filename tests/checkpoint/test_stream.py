import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from packaging import specifiers

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.core import errors, trees

META = {'config': '{"a": 1}', 'tokenizer': 'cGllY2Vz'}


def arrays() -> dict[str, np.ndarray]:
  """All dtypes of weights, stacked and plain, with values that any rounding would change."""
  rng = np.random.default_rng(0)
  drawn = lambda dtype, *shape: rng.standard_normal(shape).astype(dtype)
  special = np.array([np.inf, -np.inf, np.nan, -0.0, 1e-45, 3.4e38], np.float32)
  return {
    'llm/layers/w': drawn(ml_dtypes.bfloat16, 4, 6, 8),
    'llm/layers/b': drawn(np.float16, 4, 8),
    'llm/embed': drawn(np.float32, 7, 5),
    'special': special,
    'special16': special.astype(ml_dtypes.bfloat16),
    'scalar': np.float32(2.5).reshape(()),
    'scalar16': np.asarray(2.5, ml_dtypes.bfloat16),
    'counts': rng.integers(-9, 9, (3, 2, 2)),
    'small/int': np.arange(5, dtype=np.int8),
    'mask': np.array([True, False]),
    'four': drawn(np.float32, 2, 3, 4, 5),
    'wide': drawn(np.float64, 3),
  }


def same_bits(a, b) -> bool:
  a, b = np.asarray(a), np.asarray(b)
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A checkpoint whose stacked arrays were written layer by layer."""
  directory, values = tmp_path_factory.mktemp('run'), arrays()
  writer = stream.Writer(
    directory, {'params': values, 'carried': {'unused/w': values['llm/embed']}}, META
  )
  for path, value in values.items():
    for index in [(i,) for i in range(len(value))] if value.ndim > 2 else [()]:
      writer.write('params', path, value[index], index)
  writer.write('carried', 'unused/w', values['llm/embed'])
  writer.finish()
  return directory


def test_orbax_is_a_release_whose_format_was_checked():
  assert ocp.__version__ in specifiers.SpecifierSet(stream.CHECKED_ORBAX), (
    "checkpoint/stream.py writes Orbax's format by hand; check it against this version, then widen "
    f'the pin: Orbax {ocp.__version__}, checked {stream.CHECKED_ORBAX}'
  )


def test_what_is_written_is_read_back_bit_by_bit(written):
  found = stream.read(written)
  assert found.keys() == arrays().keys()
  for path, value in arrays().items():
    assert (found[path].shape, found[path].dtype, found[path].nbytes) == (
      value.shape,
      value.dtype,
      value.nbytes,
    )
    assert same_bits(found[path].read(()), value), path


def test_a_slice_is_that_slice_of_the_whole(written):
  found = stream.read(written)
  for path, index in {
    'llm/layers/w': (2,),
    'four': (1, slice(None), 2),
    'llm/embed': (slice(2, 4),),
  }.items():
    assert same_bits(found[path].read(index), arrays()[path][index]), path


def test_orbax_reads_it_whole_as_any_checkpoint_of_a_run(written):
  assert store.latest(written) == 0
  assert store.load_meta(written) == {'layout': store.FORMAT_VERSION, 'step': 0, **META}
  got = trees.flatten(store.load_params(written))
  # JAX itself has no 64 bits; those are compared above.
  assert got.keys() == arrays().keys()
  assert all(
    same_bits(got[path], value) for path, value in arrays().items() if value.dtype.itemsize < 8
  )


def test_restored_onto_a_mesh(written):
  mesh = jax.make_mesh(
    (4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4]
  )
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  narrow = {path: value for path, value in arrays().items() if value.dtype.itemsize < 8}
  plain = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  expected = {
    path: jax.ShapeDtypeStruct(
      value.shape, value.dtype, sharding=split if path == 'llm/layers/w' else plain
    )
    for path, value in arrays().items()
    if path in narrow
  }
  wide = {
    path: jax.ShapeDtypeStruct(
      value.shape, np.float32 if value.dtype.kind == 'f' else value.dtype, sharding=plain
    )
    for path, value in arrays().items()
    if path not in narrow
  }
  got = trees.flatten(store.load_params(written, trees.unflatten(expected | wide)))
  assert got['llm/layers/w'].sharding.is_equivalent_to(split, 3) and same_bits(
    got['llm/layers/w'], arrays()['llm/layers/w']
  )


@pytest.mark.parametrize(
  'shape, limit, chunk, expected',
  [
    ((8, 10), 320, None, (8, 10)),
    ((8, 10), 319, None, (4, 10)),
    ((3, 8, 10), 320, None, (1, 8, 10)),
    ((3, 8, 10), 330, None, (1, 8, 10)),
    ((3, 8, 10), 700, None, (2, 8, 10)),
    ((2, 100), 90, None, (1, 20)),
    ((7, 10), 100, None, (2, 10)),
    ((64, 10), 400, (4, 10), (8, 10)),
    ((64, 10), 400, (12, 10), (12, 10)),
    ((64, 10), 400, (64, 5), (8, 10)),
    ((0, 4), 8, None, (0, 4)),
  ],
)
def test_parts_are_rows_that_follow_each_other_within_bytes(shape, limit, chunk, expected):
  part = stream.chunk_shape(shape, 4, limit, chunk)
  assert part == expected
  whole = np.arange(np.prod(shape)).reshape(shape)
  pieces = [whole[index] for index in stream.part_indices(shape, part)]
  assert np.array_equal(np.concatenate([piece.ravel() for piece in pieces]), whole.ravel())


def test_a_large_leaf_that_is_no_stack_is_cut_into_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(stream, '_MAX_CHUNK_BYTES', 1000)
  value = np.random.default_rng(0).standard_normal((97, 21)).astype(np.float32)
  layers = np.random.default_rng(1).standard_normal((2, 50, 21)).astype(np.float32)
  writer = stream.Writer(tmp_path, {'params': {'w': value, 'layers': layers}}, META)
  for path, array in (('w', value), ('layers', layers)):
    for index in stream.part_indices(array.shape, stream.chunk_shape(array.shape, 4)):
      writer.write('params', path, array[index], index)
  writer.finish()
  found = stream.read(tmp_path)
  assert found['w'].chunk[0] < 12 and found['layers'].chunk == (1, 10, 21)
  assert same_bits(found['w'].read((slice(3, 40),)), value[3:40]) and same_bits(
    found['layers'].read(()), layers
  )
  got = store.load_params(tmp_path)
  assert same_bits(got['w'], value) and same_bits(got['layers'], layers)


def test_items_are_separate_and_an_absent_one_is_empty(written):
  carried = stream.read(written, 'carried')
  assert list(carried) == ['unused/w'] and same_bits(
    carried['unused/w'].read(()), arrays()['llm/embed']
  )
  assert stream.read(written, 'opt_state') == {}


def test_a_checkpoint_of_a_training_run_is_read(tmp_path):
  layers = {'w': jnp.arange(24.0).reshape(2, 3, 4).astype(jnp.bfloat16)}
  values = {'llm': {'layers': layers, 'n': jnp.int32(3)}, 'b': jnp.ones(3, jnp.float16)}
  with store.Store(tmp_path) as run:
    for step in (3, 12):
      shifted = jax.tree.map(lambda leaf, step=step: leaf + step, values)
      run.save(step, shifted, {'moments': jnp.zeros(2)}, META)
  for place, step in ((tmp_path, 12), (tmp_path / 'checkpoints' / '3', 3)):
    found = stream.read(place)
    expected = trees.flatten(jax.tree.map(lambda leaf, step=step: np.asarray(leaf + step), values))
    assert found.keys() == expected.keys()
    assert all(same_bits(found[path].read(()), value) for path, value in expected.items())
    assert same_bits(found['llm/layers/w'].read((1,)), expected['llm/layers/w'][1])


def test_an_abandoned_checkpoint_leaves_nothing(tmp_path):
  for name, before in (('new', []), ('notes', ['mine.txt'])):
    (tmp_path / name).mkdir()
    for file in before:
      (tmp_path / name / file).write_text('kept')
    writer = stream.Writer(tmp_path / name, {'params': {'w': np.ones(3, np.float32)}}, META)
    writer.write('params', 'w', np.ones(3, np.float32))
    writer.abandon()
    left = (
      sorted(path.name for path in (tmp_path / name).iterdir())
      if (tmp_path / name).exists()
      else []
    )
    assert left == before


def test_a_layer_of_a_training_run_is_compressed_alone(tmp_path):
  """Reading one layer does not decompress the stack, on any mesh it was saved from."""
  mesh = jax.make_mesh(
    (4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4]
  )
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'x'))
  w = jax.device_put(np.arange(6.0 * 8 * 4, dtype=np.float32).reshape(6, 8, 4), split)
  with store.Store(tmp_path) as run:
    run.save(1, {'w': w, 'embed': jnp.ones((5, 4))}, None, META)
  folder = tmp_path / 'checkpoints' / '1' / 'params'
  opened = {
    path: tensorstore.open(stream.array_spec(folder, path), read=True).result()
    for path in ('w', 'embed')
  }
  chunks = {path: array.chunk_layout.read_chunk.shape for path, array in opened.items()}
  assert chunks['w'][0] == 1 and chunks['embed'] == (5, 4)
  assert same_bits(stream.read(tmp_path)['w'].read((4,)), w[4])


def test_an_output_in_use_by_another_writer_is_refused_and_untouched(tmp_path):
  value = np.arange(3, dtype=np.float32)
  first = stream.Writer(tmp_path, {'params': {'v': value}}, META)
  with pytest.raises(errors.SphinxError, match='another process at work in it'):
    stream.Writer(tmp_path, {'params': {'v': value}}, META)
  first.write('params', 'v', value)
  first.finish()
  np.testing.assert_array_equal(stream.read(tmp_path)['v'].read(()), value)


def test_the_next_try_starts_over(tmp_path):
  value = np.ones((2, 3, 4), np.float32)
  # A traceback may still hold it.
  first = stream.Writer(tmp_path, {'params': {'w': value, 'old': value}}, META)
  first.write('params', 'w', 7 * value)
  first.abandon()
  second = stream.Writer(tmp_path, {'params': {'w': value}}, META)
  second.write('params', 'w', value)
  second.finish()
  assert list(stream.read(tmp_path)) == ['w'] and np.all(stream.read(tmp_path)['w'].read(()) == 1)
  assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['0']
  del first


def test_a_directory_with_a_checkpoint_is_refused_and_kept(written):
  before = sorted(str(path) for path in written.rglob('*'))
  with pytest.raises(errors.SphinxError, match='a directory that holds a checkpoint.*--output'):
    stream.Writer(written, {'params': {'w': np.ones(3, np.float32)}}, META)
  assert sorted(str(path) for path in written.rglob('*')) == before


KILLED = """
import sys, time
import numpy as np
from sphinx_jax.checkpoint import stream
value = np.ones((64, 1000, 100), np.float32)
writer = stream.Writer(sys.argv[1], {'params': {'w': value}}, {})
for i in range(64):
  writer.write('params', 'w', value[i], (i,))
  if i == 20:
    print('half', flush=True)
    time.sleep(60)
writer.finish()
"""


def test_killed_while_writing_leaves_no_checkpoint(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', KILLED, str(tmp_path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env=os.environ | {'PYTHONPATH': os.getcwd()},
  ) as process:
    assert process.stdout.readline() == 'half\n'
    process.kill()
  assert process.returncode == -signal.SIGKILL and any((tmp_path / 'checkpoints').iterdir())
  assert store.latest(tmp_path) is None
  for folder in (tmp_path, tmp_path / 'checkpoints' / 'partial'):
    with pytest.raises(errors.SphinxError):
      stream.read(folder)
  value = np.ones(3, np.float32)
  second = stream.Writer(tmp_path, {'params': {'v': value}}, META)
  second.write('params', 'v', value)
  second.finish()
  assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['0'] and list(
    stream.read(tmp_path)
  ) == ['v']


def test_whole_chunks_are_files_that_are_written_and_mapped_without_a_copy(tmp_path):
  """Other parts, and those of a padded chunk, are written and read by tensorstore."""
  value = np.random.default_rng(0).standard_normal((3, 10, 6)).astype(ml_dtypes.bfloat16)
  leaf = stream.Array(value.shape, value.dtype, None)
  leaf.chunk = (1, 4, 6)
  writer = stream.Writer(tmp_path / 'run', {'params': {'a/w': leaf}}, META)
  for index in (
    np.index_exp[0, 0:8],  # Two chunks.
    np.index_exp[0, 8:10],
    np.index_exp[1:3, 0:4],
    np.index_exp[1, 4:10],
    np.index_exp[2, 4:8],
    np.index_exp[2, 8:],
  ):
    writer.write('params', 'a/w', value[index], index)
  writer.finish()
  for mapped in (True, False):
    (array,) = stream.read(tmp_path / 'run', mapped=mapped).values()
    for index in (
      np.index_exp[1, 4:8],  # One chunk.
      np.index_exp[2:3, :4],
      np.index_exp[1, 3:5],
      np.index_exp[0, 8:],
      np.index_exp[2],
      (),
    ):
      assert same_bits(array.start_read(index).result(), value[index])
    assert array.start_read(np.index_exp[1, 4:8]).result().flags.writeable != mapped
  loaded = store.load_params(tmp_path / 'run')
  assert same_bits(loaded['a']['w'], value)


def test_a_mapped_file_that_is_too_short_is_named(tmp_path):
  value = np.ones((8, 4), np.float32)
  writer = stream.Writer(tmp_path / 'run', {'params': {'w': value}}, META)
  writer.write('params', 'w', value)
  writer.finish()
  (file,) = (tmp_path / 'run').glob('checkpoints/0/params/w/0.0')
  file.write_bytes(file.read_bytes()[:-4])
  (array,) = stream.read(tmp_path / 'run', mapped=True).values()
  with pytest.raises(errors.SphinxError, match='what was saved'):
    array.start_read(()).result()
