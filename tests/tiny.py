"""A run of the real model at a tiny width, and batches for it made in memory."""

import contextlib
import pathlib
import types

import jax
import numpy as np
from ml_collections import ConfigDict, config_dict

from sphinx_jax import run as run_lib
from sphinx_jax.checkpoint import bundle
from sphinx_jax.core import trees
from sphinx_jax.parallel import placement
from sphinx_jax.training import state, writer
from tests.models import small

VISUAL_TOKENS = 7  # Start, class, 2 x 2 patches, end.


def tiny(**changes) -> ConfigDict:
  """The config of a run; `changes` are dotted settings."""
  source = dict(source='memory', task='vqa', weight=1.0)
  config = ConfigDict(
    dict(
      name='tiny',
      seed=0,
      model=small.config(
        grid=1,
        encoders=dict(clip=dict(view=16, patch=8, width=8, layers=1, heads=2)),
        llm=dict(name='llama', vocab=32, width=16, layers=2, heads=4, kv_heads=2, multiple_of=8),
      ),
      tokenizer='none',
      dialog=dict(system=''),
      data_dir='',
      mixture=dict(ocr=source, vqa=source),
      batch=dict(size=8, seq_len=16, images=1, window=16),
      loss_weighting='token',
      loss_chunk=0,
      max_skipped=0.5,
      image=dict(alpha='drop'),
      sampling=dict(by='examples', temperature=1.0, stages=()),
      trainable=(('encoders/.*', 'frozen'), ('.*', 'train')),
      optimizer=dict(
        name='adamw',  # Compiles faster than muon.
        lr=1e-2,
        warmup=2,
        decay_to=0.1,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        clip=1.0,
        accumulate=1,
        moment_dtype='float32',
      ),
      steps=5,
      log_every=2,
      profile=(),
      wandb='',
      cache_features='',
      eval_every=3,
      eval_batches=1,
      checkpoint=dict(every=3, keep=2, keep_every=0),
      mesh=dict(data=1, fsdp=1, tensor=1),
      init_from=config_dict.placeholder(str),
      validation=dict(real=source),
    )
  )
  config.update_from_flattened_dict(changes)
  return config.lock()


MIXTURE = dict(
  name='mixtral',
  vocab=32,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  hidden=8,
  experts=4,
  experts_per_token=2,
  balance_weight=0.1,
)


def mixture(mesh=types.MappingProxyType({}), **changes) -> ConfigDict:
  """`tiny` with a mixture of experts, on a mesh of these axes."""
  config = tiny().unlock()
  config.model.llm = MIXTURE
  config.mesh.update({'expert': 1, **mesh})
  config.update_from_flattened_dict(changes)
  return config.lock()


def make_batch(config: ConfigDict, position: int) -> dict:
  """Rows with an image, a text in which each token determines the next one, and padding."""
  rng = np.random.default_rng(position)
  rows, length, images = config.batch.size, config.batch.seq_len, config.batch.images
  tokens = min(VISUAL_TOKENS, length - 1) if images else 0
  zeros = lambda dtype: np.zeros((rows, length), dtype)
  batch = {name: zeros(np.int32) for name in ('tokens', 'targets', 'positions', 'segments', 'task')}
  batch['visual_index'] = zeros(np.int32) - 1
  batch['visual_index'][:, 1 : 1 + tokens] = np.arange(tokens)
  end = length - 2
  text = slice(1 + tokens, end)
  batch['tokens'][:, 0] = 1
  batch['tokens'][:, text] = (
    rng.integers(2, 30, (rows, 1)) + 3 * np.arange(end - 1 - tokens)
  ) % 30 + 2
  batch['targets'][:, text.start : end - 1] = batch['tokens'][:, text.start + 1 : end]
  batch['loss_weight'] = zeros(np.float32)
  batch['loss_weight'][:, text.start : end - 1] = 1
  batch['loss_weight'][0] = 0  # Rows of unequal weight.
  batch['positions'][:, :end] = np.arange(end)
  batch['segments'][:, :end] = 1
  batch['task'][:, :end] = rng.integers(0, 2, (rows, 1))
  size = config.model.image_size
  batch['images'] = rng.integers(0, 256, (rows, images, size, size, 3), dtype=np.uint8)
  batch['image_size'] = np.full((rows, images, 2), size, np.int32)
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
  def open_data(config: ConfigDict, local_rows=None) -> run_lib.Data:
    return run_lib.Data(
      batches=lambda position: Stream(config, position, spoil),
      validation=lambda: {'real': [make_batch(config, 10**6)]},
      bundle=bundle.Bundle(config, b'pieces', {}),
      table='a table',
      summary=lambda position: f'a table at {position}',
    )

  return open_data


def lines(workdir: pathlib.Path) -> list[dict]:
  """The metrics that a run wrote, without those that depend on the machine."""
  return [
    {name: value for name, value in line.items() if name not in writer.MACHINE_METRICS}
    for line in writer.read(workdir)
  ]


def interrupt_at(position: int, action):
  """Data that calls `action` when the batch at `position` is read."""

  def spoil(at: int, batch: dict) -> dict:
    if at == position:
      action()
    return batch

  return in_memory(spoil)


def crash():
  raise RuntimeError('as if killed')


def run(config, params=None, steps=20, batch_at=make_batch, names=('loss', 'grad_norm')):
  """Some metrics of every step, and the parameters after the last.

  Writes no files but `config.cache_features`.
  """
  program = run_lib.Program(config)
  place = lambda tree, like: jax.tree.map(
    lambda leaf, shape: jax.device_put(leaf, shape.sharding), tree, like
  )
  params = program.init() if params is None else place(params, program.params)
  trained, frozen = state.split(params, config.trainable)
  current = state.State(
    place(np.int32(0), program.state.step), trained, frozen, program.init_optimizer(trained)
  )
  update, losses = program.compile(), []
  batches = ((batch_at(config, position), position + 1) for position in range(steps))
  with contextlib.ExitStack() as stack:
    if config.cache_features:
      features = stack.enter_context(run_lib.open_features(config, program, params, batches))
    for _ in range(steps):
      batch, _ = features.next(current.params) if config.cache_features else next(batches)
      current, metrics = update(current, placement.put(batch, program.batch_sharding))
      losses.append(tuple(float(metrics[name]) for name in names))
  return losses, trees.flatten(jax.tree.map(np.asarray, current.params))
