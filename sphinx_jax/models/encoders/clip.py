"""CLIP's vision transformer (open_clip ViT-L-14, FACTS "CLIP"): ln_post on all tokens, no output projection."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.models import layers
from sphinx_jax.models.encoders import vit

EPS = 1e-5


class Clip(nn.Module):
  """float[B,Y,X,3] CLIP-normalised views of `view` pixels -> (class token [B,E], grid [B,G,G,E])."""
  view: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp_ratio: float = 4
  activation: str = 'gelu'  # 'quick_gelu' is what OpenAI's weights were trained with (FACTS "CLIP").
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    grid = vit.grid_of('clip', self.view, self.patch)
    x = layers.PatchEmbed(self.patch, self.width, bias=False, dtype=self.dtype, name='patch')(images)
    cls = layers.param(self, 'cls', nn.initializers.normal(self.width ** -0.5), (self.width,), ('encoder_embed',))
    table = layers.param(self, 'positions', layers.sincos_2d(1), (1 + grid * grid, self.width), (None, 'encoder_embed'))
    x = vit.with_class(cls, x) + table.astype(self.dtype)
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='norm_pre')(x)
    x = vit.Trunk(self.layers, self.heads, int(self.width * self.mlp_ratio), EPS, self.activation,
                  remat=self.remat, unroll=self.unroll, dtype=self.dtype, name='trunk')(x)
    return vit.split(layers.LayerNorm(EPS, dtype=self.dtype, name='norm_post')(x), grid)
