"""The perceiver resampler of Idefics2: a few learned vectors read the patches of an image.

Source: docs/idefics2.md, "Perceiver".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.models import attention, foreign, layers

_RATIO = 4  # Hidden width of the MLPs over the width.


class Perceiver(nn.Module):
  """Patches [B,P,D] of N images a row -> vectors [B,N*Q,D].

  Attributes:
    queries: number of vectors Q.
    layers: number of layers.
    heads: number of query heads.
    kv_heads: number of key/value heads.
    head_width: C, which need not be D / heads.
    eps: epsilon of the norms.
    remat: see `layers.stack`.
    unroll: see `layers.stack`.
    dtype: compute dtype.
  """

  queries: int
  layers: int
  heads: int
  kv_heads: int
  head_width: int
  eps: float
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, patches: jax.Array, segments: jax.Array, images: int) -> jax.Array:
    """Resamples the patches of every image.

    Args:
      patches: [B,P,D].
      segments: int32[B,P], the number of a patch's image, from 1 on; 0 for padding.
      images: number of images N.

    Returns:
      [B,N*Q,D]. The vectors of an image without patches have no meaning.
    """
    batch, _, width = patches.shape
    # Released weights replace them. Equal vectors would stay equal in training.
    small = nn.initializers.normal(width**-0.5)
    latents = layers.param(
      self, 'latents', small, (self.queries, width), (None, 'encoder_embed'), self.dtype
    )
    x = jnp.broadcast_to(jnp.tile(latents, (images, 1)), (batch, images * self.queries, width))
    of_vectors = jnp.repeat(jnp.arange(1, images + 1), self.queries)
    of_vectors = jnp.broadcast_to(of_vectors, x.shape[:2])
    is_used = (segments[:, None] == of_vectors[..., None]).any(axis=-1)  # Their image has patches.
    blocks = layers.stack(self, Layer, self.layers, self.unroll, self.remat, broadcast=4)
    apply = blocks(
      self.heads,
      self.kv_heads,
      self.head_width,
      self.eps,
      (2 * self.layers) ** -0.5,
      self.dtype,
      name='layers',
    )
    key_segments = jnp.concatenate([segments, of_vectors], axis=1)
    x, _ = apply(x, patches, of_vectors, key_segments, is_used)
    return layers.RMSNorm(self.eps, self.dtype, name='norm')(x)


class Layer(nn.Module):
  """One layer, scanned. The vectors of an image see its patches and each other."""

  heads: int
  kv_heads: int
  head_width: int
  eps: float
  scale: float
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    patches: jax.Array,
    segments: jax.Array,
    key_segments: jax.Array,
    is_used: jax.Array,
  ) -> tuple[jax.Array, None]:
    norm = lambda name: layers.RMSNorm(self.eps, self.dtype, name=name)
    vectors = norm('latents_norm')(x)
    context = jnp.concatenate([norm('context_norm')(patches), vectors], axis=1)

    def project(name: str, inputs: jax.Array, heads: int) -> jax.Array:
      names = ('encoder_embed', 'encoder_heads')
      dense = layers.Dense(
        (heads * self.head_width,), names, bias=False, dtype=self.dtype, name=name
      )
      return dense(inputs).reshape(*inputs.shape[:2], heads, self.head_width)

    is_used_key = jnp.concatenate([key_segments[:, : patches.shape[1]] > 0, is_used], axis=1)
    with layers.counted(is_used_key):
      key, value = (project(name, context, self.kv_heads) for name in ('wk', 'wv'))
    out = layers.Dense(
      (x.shape[-1],),
      ('encoder_heads', 'encoder_embed'),
      bias=False,
      scale=self.scale,
      dtype=self.dtype,
      name='wo',
    )
    mlp = layers.GatedMlp(_RATIO * x.shape[-1], self.scale, self.dtype, name='mlp')
    with layers.counted(is_used):
      query = project('wq', vectors, self.heads)
      attended = attention.attend(query, key, value, segments=segments, key_segments=key_segments)
      x = x + out(attended.reshape(*x.shape[:2], -1))
      return x + mlp(norm('mlp_norm')(x)), None


def weights(layers: int) -> list[foreign.Weight]:
  """The module as HF transformers names it, without a prefix."""
  block = []
  for path, key in (
    ('latents_norm', 'input_latents_norm'),
    ('context_norm', 'input_context_norm'),
    ('mlp_norm', 'post_attention_layernorm'),
  ):
    block += foreign.tensor(f'{path}/scale', f'{key}.weight', 'd -> d')
  for name in 'qkvo':
    block += foreign.linear(f'w{name}', f'self_attn.{name}_proj', bias=False)
  block += foreign.gated_mlp('mlp', 'mlp')
  return [
    *foreign.tensor('latents', 'latents', 'q d -> q d'),
    *foreign.within('layers/', 'layers.{}.', block, range(layers)),
    *foreign.tensor('norm/scale', 'norm.weight', 'd -> d'),
  ]
