"""SigLIP's vision transformer (SO400M/14), for images of any size on one canvas.

Idefics2 uses the `Tower`; as an encoder of the SPHINX mix it sees square views of a fixed size.
Source: docs/idefics2.md, "Vision tower" and "Positions".
"""

import functools
from typing import Any, NamedTuple

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
BLOCK = 128  # Rows of a multiple of it can use the attention kernel of TPUs (parallel/splash.py).


class Tower(nn.Module):
  """Patches of normalized pixels [B,P,patch,patch,3] -> [B,P,E] after the last norm.

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
    attention: kernel of models/attention.py.
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
  attention: str = 'xla'

  @nn.compact
  def __call__(self, patches: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
    """Encodes patches.

    Args:
      patches: normalized float[B,P,patch,patch,3].
      positions: int32[B,P], the row of each in the table of positions.
      segments: int32[B,P], the number of its image. Only patches of one image see each other.

    Returns:
      [B,P,E].
    """
    embed = layers.PatchEmbed(self.patch, self.width, dtype=self.dtype, name='patch')
    x = embed(patches.reshape(-1, *patches.shape[2:])).reshape(*segments.shape, self.width)
    table = layers.param(
      self,
      'positions',
      layers.sincos_2d(0),
      (self.pos_grid**2, self.width),
      (None, 'encoder_embed'),
      self.dtype,
    )
    x += jnp.take(table, positions, axis=0)
    trunk = vit.Trunk(
      self.layers,
      self.heads,
      self.hidden,
      EPS,
      'gelu_tanh',
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      attention=self.attention,
      name='trunk',
    )
    x = trunk(x, segments)
    return layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(x)


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

  @property
  def side(self) -> int:
    """G. Raises SphinxError if the patch does not divide the view."""
    return vit.patches_per_side('siglip', self.view, self.patch)

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    side = self.side
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
    batch = images.shape[0]
    grid_size = jnp.full((batch, 1, 2), side)
    _, positions, segments, _ = place_patches(grid_size, (side, side), side, side**2)
    x = tower(cut(views, self.patch), positions, segments)
    return x.mean(axis=1), x.reshape(batch, side, side, -1)


def cut(images: jax.Array, patch: int) -> jax.Array:
  """Cuts images [B,Y,X,C] into patches [B,P,patch,patch,C], P = Y/patch * X/patch.

  Pixels beyond the last whole patch are left out.
  """
  batch, height, width, channels = images.shape
  rows, columns = height // patch, width // patch
  x = images[:, : rows * patch, : columns * patch]
  x = x.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
  return x.reshape(batch, rows * columns, patch, patch, channels)


def grid_sizes(image_size: jax.Array, patch: int, rule: str) -> jax.Array:
  """Rows and columns of real patches.

  Args:
    image_size: int32[...,2], rows and columns of pixels.
    patch: pixels along one side of a patch.
    rule: a name in PATCH_RULES.
  """
  return image_size // patch if rule == 'all' else -(-image_size // patch)


class Packed(NamedTuple):
  """The real patches of a row's images, one after another.

  Attributes:
    patches: normalized float32[B,P,patch,patch,3]; 0 beyond the image's edge.
    positions: int32[B,P], the row of each patch in the table of positions.
    segments: int32[B,P], the number of a patch's image, from 1 on; 0 for padding.
    fits: bool[B], whether no patch is left out.
  """

  patches: jax.Array
  positions: jax.Array
  segments: jax.Array
  fits: jax.Array


def pack(
  images: jax.Array, image_size: jax.Array, patch: int, rule: str, pos_grid: int, length: int
) -> Packed:
  """Cuts images into patches, and packs the real ones.

  Args:
    images: uint8[B,N,Y,X,3]; an image is in the upper left corner of its canvas.
    image_size: int32[B,N,2], rows and columns of each image.
    patch: pixels along one side of a patch.
    rule: a name in PATCH_RULES.
    pos_grid: positions along one side of their table.
    length: P, patches of a row.
  """
  batch, _, height, width = images.shape[:4]
  canvas = (height // patch, width // patch)
  index, positions, segments, fits = place_patches(
    grid_sizes(image_size, patch, rule), canvas, pos_grid, length
  )
  in_rows, in_columns = (
    jnp.arange(edge) < image_size[..., axis, None] for axis, edge in enumerate((height, width))
  )
  inside = (in_rows[..., None] & in_columns[:, :, None])[..., None]
  x = jnp.concatenate([images, inside.astype(images.dtype)], axis=-1)
  x = cut(x.reshape(-1, *x.shape[2:]), patch).reshape(batch, -1, patch, patch, 4)
  # The canvases may be much larger than their images, so pixels are gathered while they are bytes.
  x = jnp.take_along_axis(x, index[..., None, None, None], axis=1)
  patches = jnp.where(x[..., 3:] > 0, pixels.normalize(x[..., :3], MEAN, STD), 0)
  return Packed(patches, positions, segments, fits)


def place_patches(
  grid_size: jax.Array, canvas: tuple[int, int], pos_grid: int, length: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Places the real patches of a row's images one after another.

  The patches of an image are spread over the whole table of positions, whatever its size; no
  position is interpolated.

  Args:
    grid_size: int32[B,N,2], rows and columns of real patches.
    canvas: rows and columns of patches on the canvas of an image.
    pos_grid: positions along one side of the table.
    length: P, patches of a row.

  Returns:
    int32[B,P], the index of each patch among those of the row's canvases; and positions, segments
    and fits as in `Packed`.
  """
  size = jnp.minimum(grid_size, jnp.array(canvas))
  counts = size.prod(axis=-1)
  ends = jnp.cumsum(counts, axis=1)
  at = jnp.arange(length)
  number = (at >= ends[..., None]).sum(axis=1)  # Of the image, from 0 on.
  is_real = number < size.shape[1]
  number = jnp.minimum(number, size.shape[1] - 1)
  of_image = lambda x: jnp.take_along_axis(x, number, axis=1)
  rows, columns = of_image(size[..., 0]), of_image(size[..., 1])
  at = jnp.where(is_real, at - of_image(ends - counts), 0)
  row, column = jnp.divmod(at, jnp.maximum(columns, 1))
  buckets = [jnp.asarray(position_buckets(pos_grid, side)) for side in canvas]
  positions = buckets[0][rows, row] * pos_grid + buckets[1][columns, column]
  index = (number * canvas[0] + row) * canvas[1] + column
  return index, positions, jnp.where(is_real, number + 1, 0), ends[:, -1] <= length


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
