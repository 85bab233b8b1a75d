"""Times a forward pass of every full-size encoder in JAX and in PyTorch, in turns.

    python -m benchmarks.encoders
    python -m benchmarks.encoders --only=clip,dinov2 --repeats=9 --dtype=float32

One image, random weights, two threads each, float32 arithmetic. The JAX parameters are stored in
`--dtype`: bfloat16, as released, is widened inside the timed pass. The PyTorch parameters are
stored in float32. Each side runs in a separate process, which also measures its peak memory. The
PyTorch modules are those of Hugging Face transformers (`pip install -e .[convert]`).
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import sides


@dataclasses.dataclass(frozen=True)
class Case:
  """One line of the table.

  Attributes:
    title: printed name.
    encoder: name of the encoder in configs/sphinx.py.
    make_torch: settings -> forward pass of the PyTorch module.
    changes: settings in place of the config's.
  """

  title: str
  encoder: str
  make_torch: Callable
  changes: dict = dataclasses.field(default_factory=dict)


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

  def forward(images: Any) -> Any:
    return reader(query_embeds=queries, encoder_hidden_states=vit(images)).last_hidden_state

  forward.parameters = vit.parameters + count(reader)
  return forward


def siglip(settings: dict) -> Callable:
  from transformers import SiglipVisionConfig, SiglipVisionModel

  return plain(
    SiglipVisionModel,
    SiglipVisionConfig(
      hidden_size=settings['width'],
      num_hidden_layers=settings['layers'],
      num_attention_heads=settings['heads'],
      intermediate_size=settings['hidden'],
      image_size=settings['view'],
      patch_size=settings['patch'],
      vision_use_head=False,
    ),
  )


CASES = {
  'clip': Case('CLIP ViT-L/14', 'clip', clip),
  'convnext256': Case('ConvNeXt-XXL, 256 pixels', 'convnext', convnext, dict(view=256, input=256)),
  'convnext512': Case('ConvNeXt-XXL, 512 pixels', 'convnext', convnext, dict(view=512, input=512)),
  'dinov2': Case('DINOv2 ViT-g/14', 'dinov2', dinov2),
  'qformer': Case('BLIP-2 ViT-g, Q-Former', 'qformer', qformer),
  'siglip': Case('SigLIP SO400M/14, 378', 'siglip', siglip, dict(view=378)),
}


def settings_of(case: Case) -> dict:
  from sphinx_jax.configs import sphinx
  from sphinx_jax.models.encoders import siglip

  full_size = sphinx.ENCODERS['full'] | {'siglip': siglip.SIZES['so400m-14']}
  return full_size[case.encoder] | case.changes


def normal(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
  """Small random numbers: a million, repeated, as drawing a billion takes too long."""
  drawn = 0.02 * np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
  return np.resize(drawn.astype(dtype), shape)


def build(module: type, config: object) -> object:
  """A transformers module with random parameters, without its slow initialization."""
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
  """The forward pass of a module from images to its last hidden states, with `parameters`."""
  model = build(module, config)

  def forward(images: Any) -> Any:
    return model(pixel_values=images).last_hidden_state

  forward.parameters = count(model)
  return forward


def count(model: object) -> int:
  return sum(parameter.numel() for parameter in model.parameters())


def tensor(values: np.ndarray) -> object:
  import torch

  return torch.from_numpy(values)


def make_torch(name: str, _: str) -> tuple[Callable, int]:
  import torch

  torch.set_num_threads(sides.THREADS)
  case = CASES[name]
  settings = settings_of(case)
  forward = case.make_torch(settings)
  images = tensor(normal((1, 3, settings['view'], settings['view'])))

  def run(_: int) -> None:
    with torch.inference_mode():
      forward(images)

  return run, forward.parameters


def module_of(encoder: str, settings: Mapping[str, Any], dtype: str = 'float32') -> Any:
  """The flax module of an encoder of SPHINX, with these settings and compute dtype."""
  import jax.numpy as jnp

  from sphinx_jax.models import multimodal, sphinx

  shared = dict(dtype=jnp.dtype(dtype), image_mean=sphinx.MEAN, image_std=sphinx.STD)
  return multimodal.make(encoder, sphinx.ENCODERS[encoder], settings, shared, encoder)


def make_jax(name: str, dtype: str) -> tuple[Callable, int]:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from sphinx_jax.core import trees
  from sphinx_jax.models import layers

  settings = settings_of(CASES[name])
  module = module_of(CASES[name].encoder, settings)
  images = jnp.asarray(normal((1, settings['view'], settings['view'], 3)))
  shapes = jax.eval_shape(
    lambda rng: nn.unbox(module.init(rng, images)['params']), jax.random.key(0)
  )
  # Not through float32 arrays, whose memory glibc would keep.
  params = jax.tree.map(lambda leaf: jnp.asarray(normal(leaf.shape, jnp.dtype(dtype))), shapes)
  forward = jax.jit(
    lambda params, images: module.apply({'params': params}, images),
    compiler_options=layers.compiler_options(),
  )
  return lambda _: jax.block_until_ready(forward(params, images)), trees.count(params)


def measure(name: str, dtype: str, repeats: int) -> str:
  """Measures a case and formats its line of the table."""
  ours, theirs = sides.measure((make_jax, make_torch), (name, dtype), repeats)
  if abs(ours.result - theirs.result) > 0.01 * ours.result:
    raise SystemExit(
      f'{name}: JAX has {ours.result} parameters, PyTorch {theirs.result}: not the same module'
    )
  (jax_passes,), (torch_passes,) = ours.seconds, theirs.seconds
  jax_seconds, torch_seconds = map(statistics.median, (jax_passes, torch_passes))
  ratios = [torch_pass / jax_pass for jax_pass, torch_pass in zip(jax_passes, torch_passes)]
  return (
    f'{CASES[name].title:25}{ours.result / 1e6:7.0f}'
    f'{1e3 * jax_seconds:9.0f}{1e3 * torch_seconds:9.0f}{torch_seconds / jax_seconds:8.2f}'
    f'   {min(ratios):4.2f} to {max(ratios):4.2f}{ours.gib:9.1f}{theirs.gib:9.1f}'
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--only', default=','.join(CASES), help='names, separated by commas (all: %(default)s)'
  )
  parser.add_argument(
    '--dtype',
    choices=('bfloat16', 'float32'),
    default='bfloat16',
    help='of our weights at rest (%(default)s)',
  )
  parser.add_argument(
    '--repeats',
    type=int,
    default=5,
    help='timed passes of each side (%(default)s); the median is printed',
  )
  options = parser.parse_args()
  names = options.only.split(',')
  if unknown := set(names) - set(CASES):
    parser.error(f'--only: unknown {", ".join(sorted(unknown))}; choose from {", ".join(CASES)}')
  began = time.perf_counter()
  widths = (25, 7, 9, 9, 8, 15, 9, 9)
  for header in (
    ('', 'million', 'JAX', 'PyTorch', 'times', 'of single', 'peak GiB', 'peak GiB'),
    ('encoder', 'params', 'ms', 'ms', 'faster', 'pairs', 'JAX', 'PyTorch'),
  ):
    print(header[0].ljust(widths[0]) + ''.join(map(str.rjust, header[1:], widths[1:])))
  for name in names:
    print(measure(name, options.dtype, options.repeats), flush=True)
  print(
    f'medians of {options.repeats}, {sides.THREADS} threads; '
    f'load average {os.getloadavg()[0]:.1f}; {time.perf_counter() - began:.0f} s in total'
  )


if __name__ == '__main__':
  main()
