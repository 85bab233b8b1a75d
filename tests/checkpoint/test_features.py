"""Features of frozen encoders in files: several processes, damage, a full disk."""

import os
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.checkpoint import features
from sphinx_jax.core import batch as batch_contract
from sphinx_jax.parallel import mesh as meshes, placement

ENTRIES = {bytes([i]) * 16: np.full(6, i, np.uint8) for i in range(5)}


def open_store(folder: pathlib.Path) -> features.Store:
  return features.Store(folder, 6, {'program': 'a'})


def kept(store: features.Store) -> dict:
  """The entries of ENTRIES that a store has."""
  entries = {key: store.read(key) for key in ENTRIES}
  return {key: entry.tolist() for key, entry in entries.items() if entry is not None}


ALL = {key: entry.tolist() for key, entry in ENTRIES.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
  """A folder with two shards, of three and of two entries."""
  monkeypatch.setattr(features, '_SHARD_BYTES', 3 * 6)
  store = open_store(tmp_path / 'features')
  for key, entry in ENTRIES.items():
    store.add(key, entry)
  assert kept(store) == ALL  # Of the second shard, from memory.
  store.flush()
  assert kept(store) == ALL
  assert len(list((tmp_path / 'features').iterdir())) == 2
  return tmp_path / 'features'


def test_entries_are_kept_for_later_runs(folder):
  assert kept(open_store(folder)) == ALL


def test_processes_see_the_entries_of_each_other(tmp_path, monkeypatch):
  monkeypatch.setattr(features, '_SCAN_SECONDS', 0.0)
  first, second = open_store(tmp_path), open_store(tmp_path)
  (key, entry), (other_key, other_entry), *_ = ENTRIES.items()
  first.add(key, entry)
  first.add(other_key, other_entry)
  second.add(key, entry)  # Both have computed it at the same time.
  first.flush()
  second.flush()
  second.refresh()
  assert len(second) == 2 and second.damaged == 0
  np.testing.assert_array_equal(second.read(other_key), other_entry)


def test_a_damaged_entry_is_counted_and_replaced(folder):
  shard = min(folder.iterdir())
  content = bytearray(shard.read_bytes())
  at = content.index(ENTRIES[b'\1' * 16].tobytes())
  content[at] ^= 1
  shard.write_bytes(content)
  store = open_store(folder)
  assert kept(store) == {key: entry for key, entry in ALL.items() if key != b'\1' * 16}
  assert store.damaged == 1
  store.add(b'\1' * 16, ENTRIES[b'\1' * 16])
  store.flush()
  reopened = open_store(folder)
  assert kept(reopened) == ALL and reopened.damaged == 0


def test_a_shard_that_is_cut_off_is_counted_and_the_others_are_read(folder):
  shard = min(folder.iterdir())
  shard.write_bytes(shard.read_bytes()[:-1])
  store = open_store(folder)
  assert store.damaged == 1 and list(kept(store)) == [*ENTRIES][3:]


def test_a_shard_that_is_gone_is_counted(folder):
  store = open_store(folder)
  shutil.rmtree(folder)
  assert not kept(store) and store.damaged == 5


def write_fails(*_):
  raise OSError(28, 'No space left on device')


@pytest.mark.parametrize(
  'where, name, value',
  [
    (shutil, 'disk_usage', lambda path: types.SimpleNamespace(total=1000, free=105)),
    (os, 'replace', write_fails),
  ],
  ids=['nearly full', 'full'],
)
def test_on_a_full_disk_no_more_entries_are_kept(folder, where, name, value, monkeypatch, caplog):
  monkeypatch.setattr(features.log, 'propagate', True)
  before = set(folder.iterdir())
  store = open_store(folder)
  with monkeypatch.context() as patch:
    patch.setattr(where, name, value)
    for i in range(100, 109):
      store.add(bytes([i]) * 16, np.full(6, i, np.uint8))
    store.flush()
  assert set(folder.iterdir()) == before and kept(store) == ALL
  assert len(caplog.messages) == 1 and 'features of more images are not kept' in caplog.messages[0]


def test_missing_images_of_several_batches_are_encoded_in_one_call(tmp_path, monkeypatch):
  sharding = placement.batch_sharding(meshes.make_mesh(1, 1, 1))
  images = jax.ShapeDtypeStruct((2, 2, 4, 4, 3), jnp.uint8, sharding=sharding)
  mean = lambda scale, images: scale * images.mean(axis=(2, 3)).astype(jnp.bfloat16)
  scale = jnp.bfloat16(1)
  encoder = jax.jit(mean, out_shardings=sharding).lower(scale, images)
  colors = [[0, 1, 2], [2, 1], [3, 0], [4], []]  # Of the images of each batch.

  def batches():
    for position, row in enumerate(colors, 1):
      batch = dict.fromkeys(batch_contract.FIELDS)
      batch['images'] = np.zeros((2, 2, 4, 4, 3), np.uint8)
      batch['image_size'] = np.zeros((2, 2, 2), np.int32)
      for slot, color in enumerate(row):
        batch['images'][divmod(slot, 2)] = 10 * color
        batch['image_size'][divmod(slot, 2)] = 4
      yield batch, position
    raise OSError('the disk is gone')

  opened = features.Features(tmp_path, encoder, {'scale': scale}, sharding, batches())
  calls = []
  run = opened._run
  monkeypatch.setattr(opened, '_run', lambda *given: calls.append(0) or run(*given))
  opened.next(scale)
  opened.restart(batches())  # Drops what was read ahead, but not its features.
  for position, row in enumerate(colors, 1):
    batch, got_position = opened.next(scale)
    assert got_position == position and 'images' not in batch
    expected = [10 * color for color in row] + [0] * (4 - len(row))
    assert batch['features'].dtype == jnp.bfloat16
    assert batch['features'].reshape(4, 3).tolist() == [[value] * 3 for value in expected]
  # Four fit into the first call. The error comes after the batches before it.
  assert (len(calls), opened.computed) == (2, 5)
  with pytest.raises(OSError, match='the disk is gone'):
    opened.next(scale)
  opened.restart(batches())
  assert opened.next(scale)[1] == 1
