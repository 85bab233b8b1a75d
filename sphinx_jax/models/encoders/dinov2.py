"""DINOv2's vision transformer (ViT-g/14, FACTS "DINOv2"): SwiGLU, layer scale, interpolated position embeddings."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.mix import scales
from sphinx_jax.models import layers
from sphinx_jax.models.encoders import vit

EPS = 1e-6
_OFFSET = 0.1  # The official interpolation asks for (G + 0.1) / G_stored, which moves every sampling point.


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
    old_mean, old_std, mean, std = (np.asarray(v, np.float32) for v in (self.image_mean, self.image_std, self.mean, self.std))
    x = (images * old_std + old_mean - mean) / std
    x = layers.PatchEmbed(self.patch, self.width, dtype=self.dtype, name='patch')(x)
    cls = layers.param(self, 'cls', nn.initializers.normal(self.width ** -0.5), (self.width,), ('encoder_embed',))
    table = layers.param(self, 'positions', layers.sincos_2d(1), (1 + self.pos_grid ** 2, self.width), (None, 'encoder_embed'))
    x = vit.with_class(cls, x) + interpolate(table, grid).astype(self.dtype)
    hidden = self.hidden or (int(4 * self.width * 2 / 3) + 7) // 8 * 8
    x = vit.Trunk(self.layers, self.heads, hidden, EPS, 'swiglu', layer_scale=True,
                  remat=self.remat, unroll=self.unroll, dtype=self.dtype, name='trunk')(x)
    return vit.split(layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(x), grid)


def interpolate(table: jax.Array, grid: int) -> jax.Array:
  """Position embeddings float32[1+P*P,E] -> [1+grid*grid,E]: bicubic over the cells, the class position untouched."""
  stored, width = int((table.shape[0] - 1) ** 0.5), table.shape[1]
  if stored == grid:
    return table
  cells = table[1:].reshape(1, stored, stored, width)
  cells = scales.resize(cells, grid, scale=(grid + _OFFSET) / stored)
  return jnp.concatenate([table[:1], cells.reshape(grid * grid, width)])
