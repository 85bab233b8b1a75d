"""BLIP-2's ViT and Q-Former (FACTS "BLIP-2"): learned queries that read an image by cross-attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.models import attention, layers
from sphinx_jax.models.encoders import vit

VIT_EPS = 1e-6
EPS = 1e-12


class QFormer(nn.Module):
  """float[B,Y,X,3] CLIP-normalised views of `view` pixels -> query tokens [B,queries,width].

  The fields `vit_*` size the vision transformer; width, layers, heads and mlp the Q-Former, whose even layers
  (0, 2, ...) cross-attend.
  """
  view: int
  patch: int
  vit_width: int
  vit_layers: int
  vit_heads: int
  vit_mlp: int
  width: int
  layers: int
  heads: int
  mlp: int
  queries: int
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    seen = Vit(self.view, self.patch, self.vit_width, self.vit_layers, self.vit_heads, self.vit_mlp,
               self.remat, self.unroll, self.dtype, name='vit')(images)
    queries = layers.param(self, 'queries', nn.initializers.normal(1.0), (self.queries, self.width), (None, 'encoder_embed'))
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(queries)
    x = jnp.broadcast_to(x, (images.shape[0], *x.shape))
    # A pair is an even layer, which cross-attends, and an odd one; a last even layer may stand alone.
    pairs, rest = divmod(self.layers, 2)
    shape = (self.heads, self.mlp, self.dtype)
    if pairs:
      x, _ = layers.stack(Pair, pairs, self.unroll, self.remat, broadcast=1)(*shape, name='pairs')(x, seen)
    return Layer(*shape, name='last')(x, seen) if rest else x


class Vit(nn.Module):
  """BLIP-2's vision transformer: [B,Y,X,3] -> all tokens [B,1+G*G,E] after the last norm."""
  view: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp: int
  remat: str
  unroll: int
  dtype: Any

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    grid = vit.grid_of('qformer', self.view, self.patch)
    x = layers.PatchEmbed(self.patch, self.width, dtype=self.dtype, name='patch')(images)
    cls = layers.param(self, 'cls', nn.initializers.normal(self.width ** -0.5), (self.width,), ('encoder_embed',))
    table = layers.param(self, 'positions', layers.sincos_2d(1), (1 + grid * grid, self.width), (None, 'encoder_embed'))
    x = vit.with_class(cls, x) + table.astype(self.dtype)
    x = vit.Trunk(self.layers, self.heads, self.mlp, VIT_EPS, remat=self.remat, unroll=self.unroll, dtype=self.dtype, name='trunk')(x)
    return layers.LayerNorm(VIT_EPS, dtype=self.dtype, name='norm')(x)


class Pair(nn.Module):
  """An even layer and the odd one after it."""
  heads: int
  mlp: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, seen: jax.Array) -> tuple[jax.Array, None]:
    x = Layer(self.heads, self.mlp, self.dtype, name='even')(x, seen)
    return Layer(self.heads, self.mlp, self.dtype, name='odd')(x, None), None


class Layer(nn.Module):
  """Post-norm self-attention, cross-attention to `seen` [B,L,E] (or none), and feed-forward, of queries x [B,Q,width]."""
  heads: int
  mlp: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, seen: jax.Array | None) -> jax.Array:
    norm = lambda name: layers.LayerNorm(EPS, dtype=self.dtype, name=name)
    x = norm('norm_self')(x + Attention(self.heads, self.dtype, name='self')(x, x))
    if seen is not None:
      x = norm('norm_cross')(x + Attention(self.heads, self.dtype, name='cross')(x, seen))
    return norm('norm_mlp')(x + vit.Mlp(self.mlp, 'gelu', 1.0, self.dtype, name='mlp')(x))


class Attention(nn.Module):
  """Attention of x [B,Q,width] over `seen` [B,L,E]."""
  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, seen: jax.Array) -> jax.Array:
    width = x.shape[-1]
    dense = lambda name, names: layers.Dense((width,), names, dtype=self.dtype, name=name)
    split = lambda y: y.reshape(*y.shape[:2], self.heads, width // self.heads)
    query, key, value = (split(dense(name, ('encoder_embed', 'encoder_heads'))(of))
                         for name, of in (('query', x), ('key', seen), ('value', seen)))
    return dense('out', ('encoder_heads', 'encoder_embed'))(attention.attend(query, key, value).reshape(x.shape))
