"""Times a forward pass of every full-size encoder, ours beside PyTorch's, in turns:

    python -m benchmarks.encoders
    python -m benchmarks.encoders --only=clip,dinov2 --repeats=9

One image, random weights, two threads each, float32 arithmetic. Our parameters rest in bfloat16 and are widened inside
the timed pass; PyTorch's rest in float32. Each side runs in a process of its own, which also gives its peak memory.
PyTorch's modules are those of Hugging Face transformers (`pip install -e .[benchmarks]`).
"""

import argparse
import dataclasses
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

THREADS = 2


@dataclasses.dataclass(frozen=True)
class Case:
  """An encoder of configs/sphinx.py and the function that makes PyTorch's; `size` in place of the config's pixels."""

  title: str
  encoder: str
  theirs: Callable
  size: int | None = None


def clip(settings: dict) -> Callable:
  from transformers import CLIPVisionConfig, CLIPVisionModel

  return plain(
    CLIPVisionModel,
    CLIPVisionConfig(
      hidden_size=settings['width'],
      num_hidden_layers=settings['layers'],
      num_attention_heads=settings['heads'],
      intermediate_size=4 * settings['width'],
      image_size=settings['view'],
      patch_size=settings['patch'],
      hidden_act='gelu',
    ),
  )


def convnext(settings: dict) -> Callable:
  from transformers import ConvNextConfig, ConvNextModel

  return plain(
    ConvNextModel, ConvNextConfig(hidden_sizes=settings['widths'], depths=settings['depths'])
  )


def dinov2(settings: dict) -> Callable:
  from transformers import Dinov2Config, Dinov2Model

  return plain(
    Dinov2Model,
    Dinov2Config(
      hidden_size=settings['width'],
      num_hidden_layers=settings['layers'],
      num_attention_heads=settings['heads'],
      image_size=settings['pos_grid'] * settings['patch'],
      patch_size=settings['patch'],
      use_swiglu_ffn=True,
    ),
  )


def qformer(settings: dict) -> Callable:
  from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
  )

  vit = plain(
    Blip2VisionModel,
    Blip2VisionConfig(
      hidden_size=settings['vit_width'],
      num_hidden_layers=settings['vit_layers'],
      image_size=settings['view'],
      num_attention_heads=settings['vit_heads'],
      intermediate_size=settings['vit_mlp'],
      patch_size=settings['patch'],
    ),
  )
  reader = build(
    Blip2QFormerModel,
    Blip2QFormerConfig(
      hidden_size=settings['width'],
      num_hidden_layers=settings['layers'],
      num_attention_heads=settings['heads'],
      intermediate_size=settings['mlp'],
      encoder_hidden_size=settings['vit_width'],
    ),
  )
  queries = tensor(normal((1, settings['queries'], settings['width'])))

  def forward(images):
    return reader(query_embeds=queries, encoder_hidden_states=vit(images)).last_hidden_state

  forward.parameters = vit.parameters + count(reader)
  return forward


CASES = {
  'clip': Case('CLIP ViT-L/14', 'clip', clip),
  'convnext256': Case('ConvNeXt-XXL, 256 pixels', 'convnext', convnext, 256),
  'convnext512': Case('ConvNeXt-XXL, 512 pixels', 'convnext', convnext, 512),
  'dinov2': Case('DINOv2 ViT-g/14', 'dinov2', dinov2),
  'qformer': Case('BLIP-2 ViT-g, Q-Former', 'qformer', qformer),
}


def settings_of(case: Case) -> dict:
  from sphinx_jax.configs import sphinx

  settings = dict(sphinx.ENCODERS['full'][case.encoder])
  return settings if case.size is None else settings | dict(view=case.size, input=case.size)


def normal(shape: tuple[int, ...]) -> np.ndarray:
  """Small random numbers; a million of them, repeated, because drawing a billion takes longer than the benchmark."""
  return np.resize(0.02 * np.random.default_rng(0).standard_normal(2**20).astype(np.float32), shape)


def build(module: type, config: object) -> object:
  """A transformers module with random parameters, without its own slow initialisation."""
  import torch

  with torch.device('meta'):
    model = module(config)
  model = model.to_empty(device='cpu').eval()
  for parameter in model.parameters():
    parameter.data.copy_(tensor(normal(tuple(parameter.shape))))
  for name, buffer in model.named_buffers():
    assert name.endswith('position_ids'), name
    buffer.copy_(torch.arange(buffer.shape[-1]))
  return model


def plain(module: type, config: object) -> Callable:
  model = build(module, config)

  def forward(images):
    return model(pixel_values=images).last_hidden_state

  forward.parameters = count(model)
  return forward


def count(model: object) -> int:
  return sum(parameter.numel() for parameter in model.parameters())


def tensor(values: np.ndarray) -> object:
  import torch

  return torch.from_numpy(values)


def make_theirs(case: Case) -> tuple[Callable, int]:
  import torch

  torch.set_num_threads(THREADS)
  settings = settings_of(case)
  forward, images = (
    case.theirs(settings),
    tensor(normal((1, 3, settings['view'], settings['view']))),
  )

  def run():
    with torch.inference_mode():
      forward(images)

  return run, forward.parameters


def make_ours(case: Case) -> tuple[Callable, int]:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from sphinx_jax.models import layers, sphinx

  settings, module = settings_of(case), sphinx.ENCODERS[case.encoder]
  shared = {'image_mean': sphinx.MEAN, 'image_std': sphinx.STD}
  module = module(
    **settings,
    **{name: value for name, value in shared.items() if name in module.__dataclass_fields__},
  )
  images = jnp.asarray(normal((1, settings['view'], settings['view'], 3)))
  shapes = jax.eval_shape(
    lambda rng: nn.unbox(module.init(rng, images)['params']), jax.random.key(0)
  )
  params = jax.tree.map(lambda leaf: jnp.asarray(normal(leaf.shape), jnp.bfloat16), shapes)
  forward = jax.jit(
    lambda params, images: module.apply({'params': params}, images),
    compiler_options=layers.compiler_options(),
  )
  return lambda: jax.block_until_ready(forward(params, images)), sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )


def work(side: Callable, name: str, pipe: Connection) -> None:
  """A process of one side: makes the module, runs it once, then once for every message; last it tells its memory."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
  run, parameters = side(CASES[name])
  run()
  pipe.send(parameters)
  while pipe.recv():
    began = time.perf_counter()
    run()
    pipe.send(time.perf_counter() - began)
  pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measure(name: str, repeats: int) -> str:
  """A line of the table."""
  context = multiprocessing.get_context('spawn')
  pipes, processes = [], []
  for side in (make_ours, make_theirs):
    pipe, other = context.Pipe()
    processes.append(context.Process(target=work, args=(side, name, other), daemon=True))
    processes[-1].start()
    other.close()  # So that a side that dies ends the wait for it.
    pipes.append(pipe)
  ask = lambda pipe, more: (pipe.send(more), pipe.recv())[1]
  ours, theirs = (pipe.recv() for pipe in pipes)
  if abs(ours - theirs) > 0.01 * ours:
    raise SystemExit(
      f'{name}: ours has {ours} parameters, PyTorch {theirs}; they are not the same module'
    )
  pairs = [[ask(pipe, True) for pipe in pipes] for _ in range(repeats)]
  memory = [ask(pipe, False) for pipe in pipes]
  for process in processes:
    process.join()
  medians = [statistics.median(seconds) for seconds in zip(*pairs)]
  ratios = [theirs / ours for ours, theirs in pairs]
  return (
    f'{CASES[name].title:25}{ours / 1e6:7.0f}{1e3 * medians[0]:9.0f}{1e3 * medians[1]:9.0f}'
    f'{medians[1] / medians[0]:8.2f}   {min(ratios):4.2f} to {max(ratios):4.2f}{memory[0]:9.1f}{memory[1]:9.1f}'
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--only', default=','.join(CASES), help='names, by commas (all: %(default)s)')
  parser.add_argument(
    '--repeats',
    type=int,
    default=5,
    help='timed passes of each side (%(default)s); the median is printed',
  )
  options = parser.parse_args()
  names = options.only.split(',')
  if unknown := set(names) - set(CASES):
    parser.error(f'--only: no {", ".join(sorted(unknown))}; there are {", ".join(CASES)}')
  began = time.perf_counter()
  print(
    f'{"":25}{"million":>7}{"ours":>9}{"PyTorch":>9}{"times":>8}{"of single":>15}{"peak GiB":>9}{"peak GiB":>9}'
  )
  print(
    f'{"encoder":25}{"params":>7}{"ms":>9}{"ms":>9}{"faster":>8}{"pairs":>15}{"ours":>9}{"PyTorch":>9}'
  )
  for name in names:
    print(measure(name, options.repeats), flush=True)
  print(
    f'medians of {options.repeats}, {THREADS} threads; load of the machine {os.getloadavg()[0]:.1f}; '
    f'{time.perf_counter() - began:.0f} s in all'
  )


if __name__ == '__main__':
  main()
