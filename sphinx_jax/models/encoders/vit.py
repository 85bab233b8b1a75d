"""The pre-norm vision transformer under CLIP, DINOv2 and BLIP-2's ViT."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.core import errors
from sphinx_jax.models import attention, layers


def grid_of(who: str, view: int, patch: int) -> int:
  """Patches along an edge.

  Raises:
    SphinxError: where the patch does not divide the view.
  """
  if view % patch:
    raise errors.make(
      f'encoder {who}',
      f'a view of {view} pixels',
      f'a multiple of its patch, {patch}',
      'change one of them',
    )
  return view // patch


class SelfAttention(nn.Module):
  """Attention of all tokens [B,L,E] to all; the kernel of `qkv` is packed (E, 3, E)."""

  heads: int
  scale: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, length, width = x.shape
    qkv = layers.Dense(
      (3, width), ('encoder_embed', None, 'encoder_heads'), dtype=self.dtype, name='qkv'
    )(x)
    qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
    x = attention.attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(batch, length, width)
    return layers.Dense(
      (width,), ('encoder_heads', 'encoder_embed'), scale=self.scale, dtype=self.dtype, name='out'
    )(x)


class Mlp(nn.Module):
  """Two linear layers; 'swiglu' packs gate and value in the first: silu(gate) * value."""

  hidden: int
  activation: str
  scale: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.activation == 'swiglu':
      both = layers.Dense(
        (2, self.hidden), ('encoder_embed', None, 'encoder_ffn'), dtype=self.dtype, name='up'
      )(x)
      hidden = jax.nn.silu(both[..., 0, :]) * both[..., 1, :]
    else:
      hidden = layers.Dense(
        (self.hidden,), ('encoder_embed', 'encoder_ffn'), dtype=self.dtype, name='up'
      )(x)
      hidden = layers.activate(self.activation, hidden)
    return layers.Dense(
      (x.shape[-1],),
      ('encoder_ffn', 'encoder_embed'),
      scale=self.scale,
      dtype=self.dtype,
      name='down',
    )(hidden)


class Block(nn.Module):
  """x + attention(norm x), x + mlp(norm x); with layer scale, each branch times a learned gamma."""

  heads: int
  hidden: int
  eps: float
  activation: str
  layer_scale: bool
  scale: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    def gamma(name):
      if not self.layer_scale:
        return 1
      return layers.param(
        self, name, nn.initializers.ones, x.shape[-1:], ('encoder_embed',), self.dtype
      )

    norm = lambda name: layers.LayerNorm(self.eps, dtype=self.dtype, name=name)
    x = x + gamma('gamma1') * SelfAttention(self.heads, self.scale, self.dtype, name='attention')(
      norm('norm1')(x)
    )
    x = x + gamma('gamma2') * Mlp(self.hidden, self.activation, self.scale, self.dtype, name='mlp')(
      norm('norm2')(x)
    )
    return x, None


class Trunk(nn.Module):
  """`layers` blocks over tokens [B,L,E], scanned."""

  layers: int
  heads: int
  hidden: int
  eps: float
  activation: str = 'gelu'
  layer_scale: bool = False
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    blocks = layers.stack(Block, self.layers, self.unroll, self.remat)
    scale = (2 * self.layers) ** -0.5  # The sum of all residual outputs starts at unit variance.
    return blocks(
      self.heads,
      self.hidden,
      self.eps,
      self.activation,
      self.layer_scale,
      scale,
      self.dtype,
      name='layers',
    )(x)[0]


def with_class(cls: jax.Array, patches: jax.Array) -> jax.Array:
  """Class token [E] in front of patches [B,G,G,E]: [B,1+G*G,E]."""
  batch, _, _, width = patches.shape
  cls = jnp.broadcast_to(cls.astype(patches.dtype), (batch, 1, width))
  return jnp.concatenate([cls, patches.reshape(batch, -1, width)], axis=1)


def split(tokens: jax.Array, grid: int) -> tuple[jax.Array, jax.Array]:
  """[B,1+G*G,E] -> class token [B,E] and grid [B,G,G,E]."""
  return tokens[:, 0], tokens[:, 1:].reshape(tokens.shape[0], grid, grid, -1)
