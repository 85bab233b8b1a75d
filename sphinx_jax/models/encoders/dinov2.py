"""DINOv2's vision transformer (ViT-g/14, FACTS "DINOv2"): SwiGLU, layer scale, interpolated position embeddings."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import scales
from sphinx_jax.models import foreign, layers
from sphinx_jax.models.encoders import vit

EPS = 1e-6
_OFFSET = (
  0.1  # The official interpolation asks for (G + 0.1) / G_stored, which moves every sampling point.
)


class DinoV2(nn.Module):
  """float[B,Y,X,3] CLIP-normalised views of `view` pixels -> (class token [B,E], grid [B,G,G,E]).

  `image_mean` and `image_std` are the statistics that the views carry; `mean` and `std` the encoder's own (ImageNet).
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

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    grid = vit.grid_of('dinov2', self.view, self.patch)
    old_mean, old_std, mean, std = (
      np.asarray(v, np.float32) for v in (self.image_mean, self.image_std, self.mean, self.std)
    )
    x = (images * old_std + old_mean - mean) / std
    x = layers.PatchEmbed(self.patch, self.width, dtype=self.dtype, name='patch')(x)
    cls = layers.param(
      self, 'cls', nn.initializers.normal(self.width**-0.5), (self.width,), ('encoder_embed',)
    )
    table = layers.param(
      self,
      'positions',
      layers.sincos_2d(1),
      (1 + self.pos_grid**2, self.width),
      (None, 'encoder_embed'),
    )
    x = vit.with_class(cls, x) + interpolate(table, grid).astype(self.dtype)
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
    return vit.split(layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(x), grid)


def interpolate(table: jax.Array, grid: int) -> jax.Array:
  """Position embeddings float32[1+P*P,E] -> [1+grid*grid,E]: bicubic over the cells, the class position untouched."""
  stored, width = int((table.shape[0] - 1) ** 0.5), table.shape[1]
  if stored == grid:
    return table
  cells = table[1:].reshape(1, stored, stored, width)
  cells = scales.resize(cells, grid, scale=(grid + _OFFSET) / stored)
  return jnp.concatenate([table[:1], cells.reshape(grid * grid, width)])


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


def _settings(patches: str, positions: str, down: str) -> Any:
  def read(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    width, _, patch, _ = shapes[patches]
    # The view is SPHINX's: the stored grid is of the pictures that DINOv2 was trained on.
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
  ),
}
