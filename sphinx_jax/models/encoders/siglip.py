"""SigLIP's vision transformer (SO400M/14), for images of any size on one canvas.

Idefics2 uses the `Tower`; as an encoder of the SPHINX mix it sees square views of a fixed size.
Source: docs/idefics2.md, "Vision tower" and "Positions".
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.models import foreign, layers, pixels
from sphinx_jax.models.encoders import vit

EPS = 1e-6
MEAN = STD = (0.5, 0.5, 0.5)
# Which patches at the edge of an image are real: those of which all pixels belong to the image (as
# today's transformers), or any pixel (its first release with Idefics2).
PATCH_RULES = ('all', 'any')


class Tower(nn.Module):
  """Normalized pixels [B,Y,X,3] -> patches [B,P,E] after the last norm, P = Y/patch * X/patch.

  Attributes:
    patch: pixels along one side of a patch.
    width: E.
    layers: number of blocks.
    heads: number of attention heads.
    hidden: hidden width of the MLPs.
    pos_grid: positions along one side of the learned table.
    remat: see `layers.stack`.
    unroll: see `layers.stack`.
    dtype: compute dtype.
  """

  patch: int
  width: int
  layers: int
  heads: int
  hidden: int
  pos_grid: int
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, grid_size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes images.

    Args:
      images: normalized float[B,Y,X,3]; an image is in the upper left corner of its canvas.
      grid_size: int32[B,2], rows and columns of real patches. The others are seen by none.

    Returns:
      Patches [B,P,E] and which of them are real, bool[B,P].
    """
    x = layers.PatchEmbed(self.patch, self.width, dtype=self.dtype, name='patch')(images)
    batch, rows, columns, width = x.shape
    ids, is_real = place_patches(grid_size, (rows, columns), self.pos_grid)
    table = layers.param(
      self,
      'positions',
      layers.sincos_2d(0),
      (self.pos_grid**2, self.width),
      (None, 'encoder_embed'),
      self.dtype,
    )
    x = x.reshape(batch, rows * columns, width) + jnp.take(table, ids, axis=0)
    trunk = vit.Trunk(
      self.layers,
      self.heads,
      self.hidden,
      EPS,
      'gelu_tanh',
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      name='trunk',
    )
    x = trunk(x, is_real)
    return layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(x), is_real


class Siglip(nn.Module):
  """CLIP-normalized views float[B,Y,X,3] -> mean over patches [B,E] and feature map [B,G,G,E].

  Attributes:
    view: pixels along one side, Y = X.
    patch: pixels along one side of a patch.
    width: E.
    layers: number of blocks.
    heads: number of attention heads.
    hidden: hidden width of the MLPs.
    image_mean: mean that the views are normalized with.
    image_std: standard deviation that the views are normalized with.
    remat: see `layers.stack`.
    unroll: see `layers.stack`.
    dtype: compute dtype.
  """

  view: int
  patch: int
  width: int
  layers: int
  heads: int
  hidden: int
  image_mean: tuple[float, ...]
  image_std: tuple[float, ...]
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    side = vit.patches_per_side('siglip', self.view, self.patch)
    views = pixels.renormalize(images, self.image_mean, self.image_std, MEAN, STD)
    tower = Tower(
      self.patch,
      self.width,
      self.layers,
      self.heads,
      self.hidden,
      side,
      self.remat,
      self.unroll,
      self.dtype,
      name='tower',
    )
    x, _ = tower(views, jnp.full((images.shape[0], 2), side))
    return x.mean(axis=1), x.reshape(x.shape[0], side, side, -1)


def grid_sizes(image_size: jax.Array, patch: int, rule: str) -> jax.Array:
  """Rows and columns of real patches.

  Args:
    image_size: int32[...,2], rows and columns of pixels.
    patch: pixels along one side of a patch.
    rule: a name in PATCH_RULES.
  """
  return image_size // patch if rule == 'all' else -(-image_size // patch)


def place_patches(
  grid_size: jax.Array, canvas: tuple[int, int], pos_grid: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the row of the position table of every patch, and which patches are real.

  The patches of an image are spread over the whole table, whatever its size; no position is
  interpolated.

  Args:
    grid_size: int32[B,2], rows and columns of real patches.
    canvas: rows and columns of patches on the canvas.
    pos_grid: positions along one side of the table.

  Returns:
    int32[B,P], 0 for patches that are not real, and bool[B,P].
  """
  ids, reals = [], []
  for axis, side in enumerate(canvas):
    buckets = jnp.asarray(position_buckets(pos_grid, side))
    count = jnp.minimum(grid_size[:, axis], side)
    reals.append(jnp.arange(side) < count[:, None])
    ids.append(buckets[count])
  real = reals[0][:, :, None] & reals[1][:, None, :]
  position = ids[0][:, :, None] * pos_grid + ids[1][:, None, :]
  batch = grid_size.shape[0]
  return jnp.where(real, position, 0).reshape(batch, -1), real.reshape(batch, -1)


@functools.cache
def position_buckets(pos_grid: int, side: int) -> np.ndarray:
  """int32[side+1,side]: for n patches along a side, the position of each; 0 beyond.

  In float32 whatever the compute dtype, as its roundings decide some positions: patch i of n stands
  at i * (1/n), and its position is the number of multiples of 1/pos_grid up to there.
  """
  boundaries = np.arange(1 / pos_grid, 1.0, 1 / pos_grid).astype(np.float32)
  buckets = np.zeros((side + 1, side), np.int32)
  for n in range(1, side + 1):
    coordinates = np.arange(n, dtype=np.float32) * (np.float32(1) / np.float32(n))
    coordinates = np.minimum(coordinates, np.float32(1 - 1e-6))
    buckets[n, :n] = np.searchsorted(boundaries, coordinates, side='right')
  return buckets


SIZES = {
  'so400m-14': dict(patch=14, width=1152, layers=27, heads=16, hidden=4304),
}


def weights(layers: int) -> list[foreign.Weight]:
  """The `Tower` as HF transformers names it, without a prefix."""
  block = [
    *foreign.norm('norm1', 'layer_norm1'),
    *foreign.unpacked('attention/qkv', [f'self_attn.{name}_proj' for name in 'qkv']),
    *foreign.linear('attention/out', 'self_attn.out_proj'),
    *foreign.norm('norm2', 'layer_norm2'),
    *foreign.linear('mlp/up', 'mlp.fc1'),
    *foreign.linear('mlp/down', 'mlp.fc2'),
  ]
  return [
    *foreign.patches('patch', 'embeddings.patch_embedding'),
    *foreign.tensor('positions', 'embeddings.position_embedding.weight', 'n e -> n e'),
    *foreign.within('trunk/layers/', 'encoder.layers.{}.', block, range(layers)),
    *foreign.norm('norm', 'post_layernorm'),
  ]
