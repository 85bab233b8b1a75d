"""Damaged checkpoint files: every copy with a cut or a flipped byte loads equal or is refused."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import torch

from sphinx_jax.checkpoint.foreign import pth, pth_writer, safetensors as ours
from sphinx_jax.core import errors

MEMORY = 32 << 20  # Bytes at most. The files have some kilobytes.


def weights() -> dict[str, torch.Tensor]:
  torch.manual_seed(0)
  return {
    'a.weight': torch.randn(6, 8),
    'a.bias': torch.randn(6).bfloat16(),
    'steps': torch.arange(5),
    'scale': torch.tensor(1.5),
  }


def damaged(data: bytes, flips: int, cuts: int, end: int | None = None):
  """Yields copies of `data` with a bit or byte changed before `end`, and copies cut short."""
  rng = np.random.default_rng(0)
  for position in rng.integers(0, end or len(data), flips):
    copy = bytearray(data)
    copy[position] ^= 1 << rng.integers(8) if rng.integers(2) else rng.integers(1, 256)
    yield bytes(copy)
  for length in {0, 1, len(data) - 1, *rng.integers(0, len(data), cuts)}:
    yield data[:length]


def check(path, copies, open_) -> tuple[int, int]:
  """Returns how many copies were refused and how many equal; any other outcome fails."""
  expected = {
    key: (tensor.shape, tensor.dtype, tensor.read().tobytes()) for key, tensor in open_().items()
  }
  refused = equal = 0
  tracemalloc.start()
  try:
    for copy in copies:
      path.write_bytes(copy)
      try:
        found = {
          key: (tensor.shape, tensor.dtype, tensor.read().tobytes())
          for key, tensor in open_().items()
        }
      except errors.SphinxError:
        refused += 1
      else:
        assert found == expected
        equal += 1
    assert tracemalloc.get_traced_memory()[1] < MEMORY
  finally:
    tracemalloc.stop()
  return refused, equal


@pytest.mark.parametrize('writer', ['torch', 'ours'])
def test_pth(tmp_path, writer):
  path = tmp_path / 'a.pth'
  torch.save({'model': weights()}, path)
  if writer == 'ours':
    pth_writer.write_pth(path, pth.open_pth(path))
  refused, equal = check(
    path, damaged(path.read_bytes(), flips=250, cuts=100), lambda: pth.open_pth(path)
  )
  # Flips in dates and padding are harmless.
  assert refused > 100 and equal


def test_safetensors(tmp_path):
  """Only the header and the length are changed: the format has no checksum of the numbers."""
  path = tmp_path / 'model.safetensors'
  safetensors.torch.save_file(weights(), path)
  data = path.read_bytes()
  header = 8 + int.from_bytes(data[:8], 'little')
  copies = [
    copy
    for copy in damaged(data, flips=400, cuts=100, end=header)
    if not renamed(data, copy, header)
  ]
  refused, equal = check(path, copies, lambda: ours.open_safetensors(path))
  assert refused > 300 and equal < 50


def renamed(data: bytes, copy: bytes, header: int) -> bool:
  """Whether the damage made another valid header: other names, or a dtype of the same width.

  Only the model's table of names can notice that.
  """

  def described(text):
    entries = json.loads(text)
    entries.pop('__metadata__', None)
    width = {'BF16': 2, 'F16': 2, 'F32': 4, 'I32': 4, 'I64': 8, 'F64': 8}
    return entries, sorted(
      (entry['data_offsets'], entry['shape'], width.get(entry['dtype']))
      for entry in entries.values()
    )

  try:
    original, damaged_header = described(data[8:header]), described(copy[8:header])
  except (ValueError, KeyError, AttributeError, TypeError):
    return False
  return (
    copy[:8] == data[:8]
    and len(copy) == len(data)
    and original[0] != damaged_header[0]
    and original[1] == damaged_header[1]
  )


def test_index(tmp_path):
  torch.save({'model': weights()}, tmp_path / 'a.pth')
  ours.write_safetensors(tmp_path / 'model', pth.open_pth(tmp_path / 'a.pth'), shard_bytes=100)
  index = tmp_path / 'model' / ours.INDEX
  refused, equal = check(
    index,
    damaged(index.read_bytes(), flips=300, cuts=100),
    lambda: ours.open_safetensors(index.parent),
  )
  assert refused > 200 and equal  # The total size is not used.


def test_a_folder_with_a_damaged_shard_is_refused(tmp_path):
  torch.save({'model': weights()}, tmp_path / 'a.pth')
  ours.write_safetensors(tmp_path / 'model', pth.open_pth(tmp_path / 'a.pth'), shard_bytes=100)
  for shard in sorted((tmp_path / 'model').glob('*.safetensors')):
    shutil.copytree(tmp_path / 'model', tmp_path / shard.stem)
    (tmp_path / shard.stem / shard.name).write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(errors.SphinxError, match=shard.name):
      ours.open_safetensors(tmp_path / shard.stem)
