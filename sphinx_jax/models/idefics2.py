"""Idefics2: images of any size, each read by a perceiver into a few vectors, and Mistral.

Source: docs/idefics2.md. Checked against HF transformers in tests/models/test_idefics2.py.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from sphinx_jax.core import errors
from sphinx_jax.models import foreign, layers, multimodal, perceiver, pixels
from sphinx_jax.models.encoders import siglip
from sphinx_jax.models.llms import llama
from sphinx_jax.parallel import placement


class Idefics2(multimodal.Multimodal):
  """The model. Parameters: vision, projection, perceiver, llm."""

  @classmethod
  def parts(cls, config: Any) -> dict[str, type[nn.Module]]:
    own = {'vision': siglip.Tower, 'perceiver': perceiver.Perceiver}
    return super().parts(config) | own

  def setup(self) -> None:
    config = self.config
    shared = dict(remat=config.remat, unroll=config.scan_unroll, dtype=jnp.dtype(config.dtype))
    self.llm = multimodal.language_model(config)
    vision = {key: value for key, value in config.vision.items() if key != 'patch_rule'}
    self.vision = siglip.Tower(**vision, **shared)
    self.projection = layers.GatedMlp(self.llm.ffn, 1.0, shared['dtype'], width=config.llm.width)
    self.perceiver = perceiver.Perceiver(**config.perceiver, **shared)

  def encode(self, images: jax.Array, image_size: jax.Array | None = None) -> jax.Array:
    """Visual tokens of images.

    Args:
      images: uint8[B,N,Y,X,3]; an image is in the upper left corner of its canvas.
      image_size: int32[B,N,2], rows and columns of each image; None: the whole canvas.

    Returns:
      [B,N*queries,D].

    Raises:
      SphinxError: a canvas smaller than a patch, or with more patches than positions.
    """
    vision = self.config.vision
    rows, count, height, width = images.shape[:4]
    if image_size is None:
      image_size = jnp.broadcast_to(jnp.array([height, width]), (rows, count, 2))
    _check_canvas(height, width, vision.patch, vision.pos_grid)
    canvas = placement.constrain(images.reshape(-1, height, width, 3), ('views', None, None, None))
    size = image_size.reshape(-1, 2)
    normalized = pixels.normalize(canvas, siglip.MEAN, siglip.STD)
    inside = (jnp.arange(height) < size[:, :1])[:, :, None] & (jnp.arange(width) < size[:, 1:])[
      :, None
    ]
    normalized = jnp.where(inside[..., None], normalized, 0)
    patches, is_real = self.vision(
      normalized, siglip.grid_sizes(size, vision.patch, vision.get('patch_rule', 'all'))
    )
    visual = self.perceiver(self.projection(patches), is_real)
    visual = visual.reshape(rows, -1, visual.shape[-1])
    return placement.constrain(visual, ('batch', None, None))


def _check_canvas(height: int, width: int, patch: int, pos_grid: int) -> None:
  if min(height, width) < patch or max(height, width) // patch > pos_grid:
    raise errors.make(
      'images',
      f'{width}x{height} pixels',
      f'{patch} to {patch * pos_grid + patch - 1} along each side',
      'resize them as the processor of the model does',
    )


def weights(config: Any) -> list[foreign.Weight]:
  """The table of a whole model as HF transformers names it."""
  text = foreign.within('llm/', '', llama.FORMS['hf'].weights(config.llm))
  text = [
    dataclasses.replace(weight, key=weight.key.replace('model.', 'model.text_model.', 1))
    for weight in text
  ]
  connector = 'model.connector.'
  return [
    *foreign.within('vision/', 'model.vision_model.', siglip.weights(config.vision.layers)),
    *foreign.gated_mlp('projection', f'{connector}modality_projection'),
    *foreign.within(
      'perceiver/', f'{connector}perceiver_resampler.', perceiver.weights(config.perceiver.layers)
    ),
    *text,
  ]


def full_size(
  vocab: int = 32003, image_size: int = 980, dtype: str = 'bfloat16'
) -> ml_collections.ConfigDict:
  """The model config of the released models.

  Args:
    vocab: rows of the embedding: 32003, or 32002 of the base model.
    image_size: pixels along one side of the canvas.
    dtype: compute dtype.
  """
  return ml_collections.ConfigDict(
    dict(
      name='idefics2',
      image_size=image_size,
      dtype=dtype,
      remat='none',
      attention='auto',
      scan_unroll=1,
      vision=dict(**siglip.SIZES['so400m-14'], pos_grid=70, patch_rule='all'),
      perceiver=dict(queries=64, layers=3, heads=16, kv_heads=4, head_width=96, eps=1e-6),
      llm=dict(name='llama', **llama.SIZES['mistral-7b'] | dict(vocab=vocab)),
    )
  )
