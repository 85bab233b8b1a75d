"""benchmarks/official: sources that are refused, the weights it writes, the loop of decoding.

The official sources are not part of the tests.
"""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import official
from sphinx_jax.checkpoint.foreign import sources
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA, META

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize('benchmark', ['decode', 'update'])
@pytest.mark.parametrize(
  'files, words',
  [
    ((), ('no file', '__init__.py', 'git clone https://')),
    (official.FILES, ("No module named 'fairscale_2'", 'pip install --no-deps fairscale')),
  ],
)
def test_sources_that_cannot_be_used_are_named_in_one_line(benchmark, files, words, tmp_path):
  for name in files:
    file = tmp_path / 'accessory' / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('import fairscale_2\n' if 'llama' in name else '')
  command = [sys.executable, '-m', f'benchmarks.{benchmark}', f'--official={tmp_path}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  line = done.stderr.splitlines()[-1]
  assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
  assert f"error: argument --official: sources '{tmp_path}': got " in line
  assert all(word in line for word in words), line


def test_weights_are_those_of_a_release_of_meta(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')  # `write` sets it for the rest of its process.
  shutil.copytree(GOLDEN / LLAMA, tmp_path / 'llama')
  official.write(str(tmp_path / 'llama'))
  folder = tmp_path / 'llama' / 'official'
  written = torch.load(folder / 'consolidated.00-of-01.model.pth', weights_only=True)['model']
  released = sources.open_source(GOLDEN / META).tensors
  assert written.keys() == {f'llma.{key}' for key in released if key != 'rope.freqs'}
  for key, tensor in written.items():
    expected = released[key.removeprefix('llma.')].read().astype(np.float32)
    np.testing.assert_array_equal(tensor.float(), expected)
  config = json.loads((folder / 'config.json').read_text())
  params = json.loads((GOLDEN / META / 'params.json').read_text())
  assert params | config == config | {'vocab_size': 512}


class Successor:
  """In place of the official model: the number after the last one. It checks what a cache needs."""

  def __init__(self):
    self.calls = []

  def forward_inference(self, tokens, start_pos):
    self.calls.append((start_pos, tokens.shape[1]))
    return torch.nn.functional.one_hot(tokens[:, -1] + 1, 9).float()


def test_every_token_is_given_to_the_official_model_once():
  model = Successor()
  for _ in range(2):  # The second call begins with the prompt again.
    assert official.greedy(model, torch.tensor([[1, 2], [3, 3]]), 3).tolist() == [
      [3, 4, 5],
      [4, 5, 6],
    ]
  assert model.calls == 2 * [(0, 2), (2, 1), (3, 1)]
