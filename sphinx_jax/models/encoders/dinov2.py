"""DINOv2's vision transformer (ViT-g/14): SwiGLU, layer scale, interpolated position embeddings.

Source: docs/official_sphinx.md, "DINOv2".
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.mix import scales
from sphinx_jax.models import foreign, foreign_config, layers, pixels
from sphinx_jax.models.encoders import vit

EPS = 1e-6
# DINOv2 interpolates with the scale (G + 0.1) / G_stored, which moves every sampling point.
_OFFSET = 0.1


class DinoV2(nn.Module):
  """CLIP-normalized views float[B,Y,X,3] -> class token [B,E] and feature map [B,G,G,E].

  Attributes:
    view: pixels along one side, Y = X.
    patch: pixels along one side of a patch.
    width: E.
    layers: number of blocks.
    heads: number of attention heads.
    pos_grid: patches per side of the stored position embeddings.
    image_mean: mean that the views are normalized with.
    image_std: standard deviation that the views are normalized with.
    hidden: hidden width of the SwiGLU; None: 8/3 E, rounded up to a multiple of 8.
    mean: mean that the encoder expects (ImageNet).
    std: standard deviation that the encoder expects (ImageNet).
    remat: see `layers.stack`.
    unroll: see `layers.stack`.
    dtype: compute dtype.
  """

  view: int
  patch: int
  width: int
  layers: int
  heads: int
  pos_grid: int
  image_mean: tuple[float, ...]
  image_std: tuple[float, ...]
  hidden: int | None = None
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @property
  def side(self) -> int:
    """G. Raises SphinxError if the patch does not divide the view."""
    return vit.patches_per_side('dinov2', self.view, self.patch)

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    side = self.side
    x = pixels.renormalize(images, self.image_mean, self.image_std, self.mean, self.std)
    x = layers.PatchEmbed(self.patch, self.width, dtype=self.dtype, name='patch')(x)
    cls, table = vit.class_and_positions(self, self.width, self.pos_grid)
    x = vit.with_class(cls, x) + interpolate(table, side).astype(self.dtype)
    hidden = self.hidden or (int(4 * self.width * 2 / 3) + 7) // 8 * 8
    x = vit.Trunk(
      self.layers,
      self.heads,
      hidden,
      EPS,
      'swiglu',
      layer_scale=True,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      name='trunk',
    )(x)
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(x)
    return vit.split_class(x, side)


def interpolate(table: jax.Array, side: int) -> jax.Array:
  """Resizes position embeddings float32[1+P*P,E] to [1+side*side,E].

  Patch positions are interpolated bicubically. The class position stays as it is.
  """
  stored, width = math.isqrt(table.shape[0] - 1), table.shape[1]
  if stored == side:
    return table
  cells = table[1:].reshape(1, stored, stored, width)
  cells = scales.resize(cells, side, scale=(side + _OFFSET) / stored)
  return jnp.concatenate([table[:1], cells.reshape(side * side, width)])


SIZES = {
  'ViT-g-14': dict(view=224, patch=14, width=1536, layers=40, heads=24, pos_grid=37),
  'golden': dict(view=224, patch=14, width=48, layers=2, heads=3, pos_grid=37, hidden=128),
}


def _original(settings: Any) -> list[foreign.Weight]:
  block = [
    *foreign.norm('norm1', 'norm1'),
    *foreign.packed('attention/qkv', 'attn.qkv.weight', 'attn.qkv.bias', 3),
    *foreign.linear('attention/out', 'attn.proj'),
    *foreign.tensor('gamma1', 'ls1.gamma', 'e -> e'),
    *foreign.norm('norm2', 'norm2'),
    *foreign.packed('mlp/up', 'mlp.w12.weight', 'mlp.w12.bias', 2),
    *foreign.linear('mlp/down', 'mlp.w3'),
    *foreign.tensor('gamma2', 'ls2.gamma', 'e -> e'),
  ]
  return [
    *foreign.patches('patch', 'patch_embed.proj'),
    *foreign.tensor('cls', 'cls_token', '1 1 e -> e'),
    *foreign.tensor('positions', 'pos_embed', '1 n e -> n e'),
    *foreign.norm('norm', 'norm'),
    *foreign.within('trunk/layers/', 'blocks.{}.', block, range(settings['layers'])),
  ]


def _huggingface(settings: Any) -> list[foreign.Weight]:
  block = [
    *foreign.norm('norm1', 'norm1'),
    *foreign.unpacked(
      'attention/qkv', [f'attention.attention.{name}' for name in ('query', 'key', 'value')]
    ),
    *foreign.linear('attention/out', 'attention.output.dense'),
    *foreign.tensor('gamma1', 'layer_scale1.lambda1', 'e -> e'),
    *foreign.norm('norm2', 'norm2'),
    *foreign.packed('mlp/up', 'mlp.weights_in.weight', 'mlp.weights_in.bias', 2),
    *foreign.linear('mlp/down', 'mlp.weights_out'),
    *foreign.tensor('gamma2', 'layer_scale2.lambda1', 'e -> e'),
  ]
  return [
    *foreign.patches('patch', 'embeddings.patch_embeddings.projection'),
    *foreign.tensor('cls', 'embeddings.cls_token', '1 1 e -> e'),
    *foreign.tensor('positions', 'embeddings.position_embeddings', '1 n e -> n e'),
    *foreign.norm('norm', 'layernorm'),
    *foreign.within('trunk/layers/', 'encoder.layer.{}.', block, range(settings['layers'])),
  ]


def _settings(patches: str, positions: str, down: str) -> foreign.ReadSettings:
  """Reader of the settings from tensors of these names."""

  def read(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    width, _, patch, _ = shapes[patches]
    # SPHINX's view is 224 pixels. The stored positions are for DINOv2's training images.
    return dict(
      view=224,
      patch=patch,
      width=width,
      layers=foreign.count(shapes, down),
      heads=foreign.heads('dinov2', SIZES, width, config=config),
      pos_grid=math.isqrt(shapes[positions][1] - 1),
      hidden=shapes[down.format(0)][1],
    )

  return read


_HUGGINGFACE_FIELDS = foreign_config.transformers_fields(
  ('dinov2',),
  ('Dinov2Model', 'Dinov2Backbone', 'Dinov2ForImageClassification'),
  used=('num_attention_heads',),
  neutral={
    'which layers a backbone returns': (
      'out_features',
      'out_indices',
      'stage_names',
      'apply_layernorm',
      'reshape_hidden_states',
    ),
    'training only': ('layerscale_value', 'use_mask_token'),
    'in the shapes of the tensors': ('mlp_ratio',),
    'without effect beside use_swiglu_ffn': ('hidden_act',),
    'of text models': ('tie_word_embeddings',),
  },
  only={
    'layer_norm_eps': (None, EPS),
    'num_channels': (None, 3),
    'qkv_bias': (None, True),
    'use_swiglu_ffn': (True,),
  },
  sizes={
    'hidden_size': lambda settings: settings['width'],
    'image_size': lambda settings: settings['patch'] * settings['pos_grid'],
    'num_hidden_layers': lambda settings: settings['layers'],
    'patch_size': lambda settings: settings['patch'],
  },
)

FORMS = {
  'original': foreign.Form(
    'DINOv2, original',
    'patch_embed.proj.weight',
    _original,
    _settings('patch_embed.proj.weight', 'pos_embed', 'blocks.{}.mlp.w3.weight'),
    unused=(r'mask_token',),
  ),
  'hf': foreign.Form(
    'DINOv2 of HF transformers',
    'embeddings.patch_embeddings.projection.weight',
    _huggingface,
    _settings(
      'embeddings.patch_embeddings.projection.weight',
      'embeddings.position_embeddings',
      'encoder.layer.{}.mlp.weights_out.weight',
    ),
    unused=(r'embeddings\.mask_token',),
    prefixes=('', 'dinov2.'),
    configs={'config.json': _HUGGINGFACE_FIELDS},
  ),
}
