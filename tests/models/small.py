"""A tiny model with every encoder, and a packed batch for it."""

import functools

import jax
import ml_collections
import numpy as np

from sphinx_jax.core import batch
from sphinx_jax.models import families

T = 64


def config(**changes):
  """Four encoders and 2 x 2 sub-images. `changes` override keys of the model config."""
  values = dict(
    image_size=16,
    grid=2,
    pool=1,
    half_round=False,
    dtype='float32',
    remat='none',
    attention='auto',
    scan_unroll=1,
    encoders=dict(
      clip=dict(view=8, patch=2, width=8, layers=1, heads=2),
      convnext=dict(view=8, input=16, depths=(1,), widths=(8,)),
      dinov2=dict(view=8, patch=2, width=8, layers=1, heads=2, pos_grid=3),
      qformer=dict(
        view=8,
        patch=4,
        vit_width=8,
        vit_layers=1,
        vit_heads=2,
        vit_mlp=16,
        width=8,
        layers=2,
        heads=2,
        mlp=16,
        queries=2,
      ),
    ),
    llm=dict(
      name='llama', vocab=50, width=16, layers=2, heads=4, kv_heads=2, multiple_of=8, max_length=128
    ),
  )
  return ml_collections.ConfigDict(values | changes)


def light(**changes):
  """One convolutional encoder and one view, which compiles fast."""
  encoders = dict(convnext=dict(view=16, input=16, depths=(1,), widths=(8,)))
  return config(**(dict(grid=1, encoders=encoders) | changes))


def weights(abstract, seed=1):
  """Random parameters for a tree of shapes.

  numpy draws them, as compiling `init` takes too long for a test. Biases and gammas are not 0 and
  1, which would hide mistakes.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, noise = path[-1].key, rng.standard_normal(leaf.shape).astype(np.float32)
    if name in ('scale', 'gamma', 'gamma1', 'gamma2'):
      return 1 + 0.1 * noise
    return noise * (0.1 if 'bias' in name else max(leaf.shape[0], 4) ** -0.5)

  return jax.tree_util.tree_map_with_path(draw, abstract)


@functools.cache
def light_params():
  return weights(families.abstract_params(light()))


@functools.cache
def light_forward():
  """Jitted (params, tokens, visual_index, positions, segments, images) -> logits of `light()`."""
  model = families.build(light())
  return jax.jit(lambda params, *fields: model.apply({'params': params}, *fields))


def examples(seed=0):
  """(tokens, visual_index) of two examples: one with an image (slot 0), and one of text only."""
  rng = np.random.default_rng(seed)
  with_image, text = rng.integers(3, 50, 12), rng.integers(3, 50, 9)
  words = families.visual_tokens(light())
  return [batch.interleave(with_image, (1,), words), batch.interleave(text, (), words)]


def row(parts, length=T):
  """Packs examples (tokens, visual_index) into one row.

  Returns:
    tokens, visual_index, positions, segments, each int32[1,length].
  """
  fields = np.zeros((4, 1, length), np.int32)
  fields[1] = -1
  start = 0
  for number, (tokens, index) in enumerate(parts, 1):
    end = start + len(tokens)
    for field, values in zip(fields[:, 0], (tokens, index, np.arange(len(tokens)), number)):
      field[start:end] = values
    start = end
  return tuple(fields)


def images(count=1, size=16, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (1, count, size, size, 3)).astype(np.uint8)
