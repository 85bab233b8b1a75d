import jax
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.parallel import mesh, placement


def test_one_device_by_default_and_more_when_asked():
  assert mesh.make_mesh().size == 1
  assert dict(mesh.make_mesh(2, 2, 2).shape) == {
    'data': 2,
    'fsdp': 2,
    'tensor': 2,
    'expert': 1,
  }


@pytest.mark.parametrize('shape', [(16, 1, 1), (0, 1, 1)])
def test_impossible_mesh_is_refused(shape):
  with pytest.raises(errors.SphinxError, match=f'data={shape[0]}.*8 cpu devices'):
    mesh.make_mesh(*shape)


def test_rows_are_split_over_data_and_fsdp():
  shape = mesh.make_mesh(2, 2, 2)
  rows = np.arange(8, dtype=np.int32).reshape(8, 1)
  placed = placement.put({'tokens': rows}, placement.batch_sharding(shape))['tokens']
  np.testing.assert_array_equal(placed, rows)
  assert {tuple(shard.data.ravel().tolist()) for shard in placed.addressable_shards} == {
    (0, 1),
    (2, 3),
    (4, 5),
    (6, 7),
  }
  assert len(jax.device_put(rows, placement.replicated(shape)).addressable_shards[0].data) == 8


def test_rows_that_do_not_divide_are_refused():
  assert placement.microbatches(8, 16, 2, mesh.make_mesh(2, 2, 2)) == 2
  with pytest.raises(
    errors.SphinxError, match='batch.size: got 8.*accumulate 4 x mesh.data.fsdp.expert 4'
  ):
    placement.microbatches(8, 16, 4, mesh.make_mesh(2, 2, 2))
  with pytest.raises(errors.SphinxError, match='batch.size: got 6, expected a multiple of mesh'):
    placement.microbatches(6, 16, -1, mesh.make_mesh(2, 2, 2))


@pytest.mark.parametrize('seq_len, number', [(1024, 3), (2048, 6), (8192, 24), (12288, 24)])
def test_a_device_has_few_positions_at_a_time(seq_len, number):
  assert placement.microbatches(96, seq_len, -1, mesh.make_mesh(2, 2, 2)) == number
