"""The training door, with the real model at a tiny width and batches made in memory."""

import base64
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sphinx_jax import train as door
from sphinx_jax.checkpoint import store
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.models import sphinx
from sphinx_jax.training import writer

TIMES = ('steps_per_second', 'examples_per_second', 'tokens_per_second', 'data_wait_share', 'rss_bytes')


def tiny(**changes) -> ConfigDict:
  source = dict(source='memory', weight=1.0)
  config = ConfigDict(dict(
      name='tiny', seed=0,
      model=dict(image_size=16, grid=1, pool=1, half_round=False, dtype='float32', remat='none', scan_unroll=1,
                 encoders=dict(clip=dict(view=16, patch=8, width=8, layers=1, heads=2)),
                 llm=dict(name='llama', vocab=32, width=16, layers=2, heads=4, kv_heads=2, multiple_of=8)),
      tokenizer='none', dialog=dict(system=''), data_dir='', mixture=dict(ocr=source, vqa=source),
      batch=dict(rows=8, length=16, images=1, window=16), loss_weighting='token',
      trained=(('encoders/.*', 'none'), ('.*', 'train')),
      optimizer=dict(lr=1e-2, warmup=2, decay_to=0.1, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0, accumulate=1,
                     moment_dtype='float32'),
      steps=5, log_every=2, eval_every=3, eval_batches=1, checkpoint=dict(every=3, keep=2),
      mesh=dict(data=1, fsdp=1, tensor=1), init_from=None, validation=dict(real=source)))
  config.update_from_flattened_dict(changes)
  return config.lock()


def make_batch(config: ConfigDict, position: int) -> dict:
  """A picture, then a text in which every token follows from the one before; the second half of a row is padding."""
  rng = np.random.default_rng(position)
  rows, length, tokens = config.batch.rows, config.batch.length, sphinx.visual_tokens(config.model)
  zeros = lambda dtype: np.zeros((rows, length), dtype)
  batch = {name: zeros(np.int32) for name in ('tokens', 'targets', 'positions', 'segments', 'task')}
  batch['visual_index'] = zeros(np.int32) - 1
  batch['visual_index'][:, 1:1 + tokens] = np.arange(tokens)
  end = length - 2
  text = slice(1 + tokens, end)
  batch['tokens'][:, 0] = 1
  batch['tokens'][:, text] = (rng.integers(2, 30, (rows, 1)) + 3 * np.arange(end - 1 - tokens)) % 30 + 2
  batch['targets'][:, text.start:end - 1] = batch['tokens'][:, text.start + 1:end]
  batch['loss_weight'] = zeros(np.float32)
  batch['loss_weight'][:, text.start:end - 1] = 1
  batch['loss_weight'][0] = 0  # Rows of unequal weight.
  batch['positions'][:, :end] = np.arange(end)
  batch['segments'][:, :end] = 1
  batch['task'][:, :end] = rng.integers(0, 2, (rows, 1))
  batch['images'] = rng.integers(0, 256, (rows, 1, 16, 16, 3), dtype=np.uint8)
  return batch


class Stream:
  """Batches by position, with the `close` of the real pipeline's iterator."""

  def __init__(self, config: ConfigDict, position: int, spoil=lambda position, batch: batch):
    self._config, self._position, self._spoil, self.closed = config, position, spoil, False

  def __next__(self):
    batch = self._spoil(self._position, make_batch(self._config, self._position))
    self._position += 1
    return batch, self._position

  def close(self):
    self.closed = True


def in_memory(spoil=lambda position, batch: batch):
  def open_data(config: ConfigDict) -> door.Data:
    return door.Data(lambda position: Stream(config, position, spoil), {'real': [make_batch(config, 10**6)]},
                     {'config': config_lib.to_json(config), 'tokenizer': base64.b64encode(b'pieces').decode(), 'dialog': {}},
                     'a table', {})
  return open_data


@pytest.fixture(autouse=True)
def data(monkeypatch):
  monkeypatch.setattr(door, 'open_data', in_memory())


def lines(workdir: pathlib.Path) -> list[dict]:
  """What a run wrote, without what depends on the machine's speed."""
  return [{name: value for name, value in line.items() if name not in TIMES} for line in writer.read(workdir)]


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('runs') / 'unbroken'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(door, 'open_data', in_memory())
    door.train(tiny(), workdir)
  return workdir


def test_run_learns_and_says_so(unbroken):
  written = writer.read(unbroken)
  assert [line['step'] for line in written] == [2, 3, 4, 5, 5]
  assert written[-2]['loss'] < written[0]['loss']
  assert {'loss/ocr', 'loss/vqa', 'learning_rate', 'grad_norm', 'useful_share', *TIMES} <= set(written[0])
  assert written[0]['useful_share'] == pytest.approx(14 / 16)
  assert 'validation/real' in written[-1]
  assert list((unbroken / 'tensorboard').iterdir())
