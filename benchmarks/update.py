"""Times one update of a language model here and in Hugging Face transformers, in turns.

    python -m benchmarks.update
    python -m benchmarks.update --width=1024 --layers=16 --repeats=9
    python -m benchmarks.update --official=DIR

All sides begin with the same float32 weights and update all of them with AdamW on the same rows of
text, of which a share has labels. The first loss of each is printed; it must agree. transformers
computes with sdpa attention and PyTorch's fused AdamW. The official code is measured if its sources
are given (benchmarks/official.py, which has the installation): with PyTorch's AdamW, as its trainer
makes it without apex, and with the fused one.
"""

import argparse
import functools
import os
import statistics
import tempfile
from collections.abc import Callable

import numpy as np

from benchmarks import llama_folder, official, sides

LEARNING_RATE, BETAS, CLIP = 1e-4, (0.9, 0.95), 1.0


def rows(options: dict) -> tuple[np.ndarray, np.ndarray]:
  """Token ids int64[B,T], and bool[B,T]: whether a position predicts a label."""
  rng = np.random.default_rng(0)
  size = options['rows'], options['length']
  labels = np.zeros(size, bool)
  labels[:, -1 - int(options['labels'] * size[1]) : -1] = True
  return rng.integers(3, options['vocab'], size), labels


def make_torch(options: dict, folder: str) -> tuple[Callable, float]:
  import torch
  from transformers import LlamaForCausalLM

  torch.set_num_threads(sides.THREADS)
  model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
  optimizer = torch.optim.AdamW(
    model.parameters(), LEARNING_RATE, BETAS, weight_decay=0.0, fused=True
  )
  tokens, labels = rows(options)
  tokens = torch.from_numpy(tokens)
  targets = torch.where(torch.from_numpy(np.roll(labels, 1, axis=1)), tokens, -100)

  def update(_: int = 1) -> float:
    optimizer.zero_grad()
    loss = model(input_ids=tokens, labels=targets, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss.item()

  return update, update()


def make_official(options: dict, folder: str, fused: bool | None) -> tuple[Callable, float]:
  import torch

  torch.set_num_threads(sides.THREADS)
  model = official.load(options['official'], folder, 'float32', options['length']).train()
  optimizer = torch.optim.AdamW(
    model.parameters(), LEARNING_RATE, BETAS, weight_decay=0.0, fused=fused
  )
  tokens, labels = rows(options)
  tokens = torch.from_numpy(tokens)
  targets = torch.where(torch.from_numpy(np.roll(labels, 1, axis=1)), tokens, 0)

  def update(_: int = 1) -> float:
    optimizer.zero_grad()
    loss, _ = model(tokens, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss.item()

  return update, update()


def make_jax(options: dict, folder: str) -> tuple[Callable, float]:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import jax
  from ml_collections import ConfigDict

  import sphinx_jax
  from sphinx_jax import run
  from sphinx_jax.configs import mini
  from sphinx_jax.training.state import State

  model = sphinx_jax.load(folder)
  model.config.remat = options['remat']
  tokens, labels = rows(options)
  config = ConfigDict(
    mini.training(
      'update',
      1000,
      LEARNING_RATE,
      {'text': dict(source='memory', task='text', weight=1.0)},
      trainable=(('.*', 'train'),),
      model=model.config.to_dict(),
      batch=dict(size=tokens.shape[0], seq_len=tokens.shape[1], images=0, window=256),
      loss_chunk=options['chunk'],
      optimizer=dict(
        name='adamw',
        lr=LEARNING_RATE,
        warmup=0,
        decay_to=1.0,
        betas=BETAS,
        weight_decay=0.0,
        clip=CLIP,
        accumulate=1,
        moment_dtype='float32',
      ),
    )
  )
  program = run.Program(config)
  state = State(jax.numpy.int32(0), model.params, {}, program.init_optimizer(model.params))
  step = program.compile()
  batch = {
    name: np.zeros(field.shape, field.dtype) for name, field in program.batch.items()
  } | dict(
    tokens=tokens.astype(np.int32),
    targets=np.roll(tokens, -1, axis=1).astype(np.int32),
    loss_weight=labels.astype(np.float32),
    positions=np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    segments=np.ones(tokens.shape, np.int32),
    visual_index=np.full(tokens.shape, -1, np.int32),
  )
  del model

  def update(_: int = 1) -> float:
    nonlocal state
    state, metrics = step(state, batch)
    return float(metrics['loss']) / float(metrics['weight'])

  return update, update()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for name, default in dict(
    width=768, layers=12, vocab=32000, rows=2, length=512, repeats=7, chunk=128
  ).items():
    parser.add_argument(f'--{name}', type=int, default=default, help='%(default)s')
  parser.add_argument(
    '--labels', type=float, default=0.35, help='share of positions with a label, %(default)s'
  )
  parser.add_argument(
    '--remat', default='dots', help='model.remat, %(default)s as in configs/forkme.py'
  )
  official.add_flag(parser)
  options = vars(parser.parse_args())
  makers = {'sphinx_jax': make_jax, 'transformers': make_torch}
  if options['official']:
    makers['official'] = functools.partial(make_official, fused=None)
    makers['official, fused'] = functools.partial(make_official, fused=True)
  with tempfile.TemporaryDirectory() as folder:
    llama_folder.write(folder, options)
    if options['official']:
      official.write(folder)
    measured = sides.measure((*makers.values(),), (options, folder), options['repeats'])
  for name, side in zip(makers, measured):
    milliseconds = sorted(1e3 * seconds for seconds in side.seconds[0])
    print(
      f'{name:16}{statistics.median(milliseconds):8.0f} ms '
      f'({milliseconds[0]:.0f} to {milliseconds[-1]:.0f}), '
      f'{side.gib:.1f} GiB, first loss {side.result:.4f}'
    )
  ours, *others = measured
  for name, side in zip([*makers][1:], others):
    ratios = sorted(b / a for a, b in zip(ours.seconds[0], side.seconds[0]))
    print(
      f'times faster than {name}: {statistics.median(ratios):.2f} '
      f'({ratios[0]:.2f} to {ratios[-1]:.2f}), memory {ours.gib / side.gib:.2f}; '
      f'load average {os.getloadavg()[0]:.1f}'
    )


if __name__ == '__main__':
  main()
