"""The pre-norm vision transformer under CLIP, DINOv2, SigLIP and BLIP-2's ViT."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.core import errors
from sphinx_jax.models import attention, layers


def patches_per_side(encoder: str, view: int, patch: int) -> int:
  """Number of patches along one side of a square view.

  Args:
    encoder: its name, for the error.
    view: pixels along one side.
    patch: pixels along one side of a patch.

  Raises:
    SphinxError: the patch does not divide the view.
  """
  if view % patch:
    raise errors.make(
      f'encoder {encoder}',
      f'a view of {view} pixels',
      f'a multiple of its patch, {patch}',
      'change one of them',
    )
  return view // patch


class SelfAttention(nn.Module):
  """Attention among tokens [B,L,E], all or those of the same one of `segments` int32[B,L].

  The kernel of `qkv` is packed as [E,3,E].
  """

  heads: int
  scale: float
  dtype: Any
  attention: str = 'xla'

  @nn.compact
  def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    batch, length, width = x.shape
    qkv = layers.Dense(
      (3, width), ('encoder_embed', None, 'encoder_heads'), dtype=self.dtype, name='qkv'
    )(x)
    qkv = layers.split_heads(qkv, self.heads)
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    x = attention.attend(
      query, key, value, segments=segments, key_segments=segments, kernel=self.attention
    ).reshape(batch, length, width)
    return layers.Dense(
      (width,), ('encoder_heads', 'encoder_embed'), scale=self.scale, dtype=self.dtype, name='out'
    )(x)


class Mlp(nn.Module):
  """Two linear layers. For 'swiglu' the first packs gate and value: silu(gate) * value."""

  hidden: int
  activation: str
  scale: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.activation == 'swiglu':
      gate_and_value = layers.Dense(
        (2, self.hidden), ('encoder_embed', None, 'encoder_ffn'), dtype=self.dtype, name='up'
      )(x)
      hidden = jax.nn.silu(gate_and_value[..., 0, :]) * gate_and_value[..., 1, :]
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
  """Pre-norm block: attention and MLP, each with a residual connection.

  With layer scale, each branch is multiplied by a learned gamma.
  """

  heads: int
  hidden: int
  eps: float
  activation: str
  layer_scale: bool
  scale: float
  dtype: Any
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array, segments: jax.Array | None) -> tuple[jax.Array, None]:
    gamma1, gamma2 = self._gamma('gamma1', x), self._gamma('gamma2', x)
    attend = SelfAttention(self.heads, self.scale, self.dtype, self.attention, name='attention')
    mlp = Mlp(self.hidden, self.activation, self.scale, self.dtype, name='mlp')
    norm1 = layers.LayerNorm(self.eps, dtype=self.dtype, name='norm1')
    norm2 = layers.LayerNorm(self.eps, dtype=self.dtype, name='norm2')
    x = x + gamma1 * attend(norm1(x), segments)
    x = x + gamma2 * mlp(norm2(x))
    return x, None

  def _gamma(self, name: str, x: jax.Array) -> jax.Array | int:
    if not self.layer_scale:
      return 1
    return layers.param(
      self, name, nn.initializers.ones, x.shape[-1:], ('encoder_embed',), self.dtype
    )


class Trunk(nn.Module):
  """Scanned blocks over tokens [B,L,E]. Those of one of `segments` int32[B,L] see each other.

  Without segments, all do.
  """

  layers: int
  heads: int
  hidden: int
  eps: float
  activation: str = 'gelu'
  layer_scale: bool = False
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32
  attention: str = 'xla'

  @nn.compact
  def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    blocks = layers.stack(self, Block, self.layers, self.unroll, self.remat, broadcast=1)
    scale = (2 * self.layers) ** -0.5  # The sum of all residual outputs starts at unit variance.
    x, _ = blocks(
      self.heads,
      self.hidden,
      self.eps,
      self.activation,
      self.layer_scale,
      scale,
      self.dtype,
      self.attention,
      name='layers',
    )(x, segments)
    return x


def class_and_positions(module: nn.Module, width: int, side: int) -> tuple[jax.Array, jax.Array]:
  """Makes a module's class token [E] and position embeddings [1+G*G,E], `width` E and `side` G."""
  cls = layers.param(
    module, 'cls', nn.initializers.normal(width**-0.5), (width,), ('encoder_embed',)
  )
  table = layers.param(
    module, 'positions', layers.sincos_2d(1), (1 + side * side, width), (None, 'encoder_embed')
  )
  return cls, table


def with_class(cls: jax.Array, patches: jax.Array) -> jax.Array:
  """Puts a class token [E] before patches [B,G,G,E]: [B,1+G*G,E]."""
  batch, _, _, width = patches.shape
  cls = jnp.broadcast_to(cls.astype(patches.dtype), (batch, 1, width))
  return jnp.concatenate([cls, patches.reshape(batch, -1, width)], axis=1)


def split_class(tokens: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
  """Splits tokens [B,1+G*G,E] into the class token [B,E] and the feature map [B,G,G,E]."""
  return tokens[:, 0], tokens[:, 1:].reshape(tokens.shape[0], side, side, -1)
