"""Layers that every part of the model shares; parameters get their logical names here.

Logical names: 'layers' (scanned), 'vocab', 'lookup', 'embed', 'heads', 'kv_heads', 'ffn' of the language model; 'encoder_embed',
'encoder_heads', 'encoder_ffn', 'encoder_out' of the encoders; 'visual' is the projections' input; None is never sharded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.parallel import placement

Names = tuple[str | None, ...]


def fan_in(axes: int = 1, scale: float = 1.0) -> Callable:
  """Normal initialiser of deviation `scale` / sqrt(product of the first `axes` dimensions)."""

  def make(rng, shape, dtype=jnp.float32):
    return jax.random.normal(rng, shape, dtype) * (scale / math.sqrt(math.prod(shape[:axes])))

  return make


def sincos_2d(prefix: int) -> Callable:
  """Initialiser of position embeddings [prefix + G*G, E]: sines and cosines of row and column, zeros for the prefix.

  Learned positions that start ordered localise sooner than random ones.
  """

  def make(rng, shape, dtype=jnp.float32):
    del rng
    cells, width = shape[0] - prefix, shape[1]
    grid = math.isqrt(cells)
    bands = -(-width // 4)
    frequency = np.pi * grid ** (
      -np.arange(bands) / bands
    )  # From half a cell's period up to the whole grid.
    angle = (np.arange(grid) + 0.5)[:, None] * frequency
    wave = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    rows, columns = np.repeat(wave, grid, axis=0), np.tile(wave, (grid, 1))
    table = np.stack([rows, columns], axis=-1).reshape(cells, -1)[:, :width]
    return jnp.asarray(np.concatenate([np.zeros((prefix, width)), table]), dtype)

  return make


def param(
  module: nn.Module,
  name: str,
  init: Callable,
  shape: Sequence[int],
  names: Names,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Makes a float32 parameter whose dimensions carry logical names; returned in `dtype`, as the mesh computes with it."""
  value = module.param(name, nn.with_logical_partitioning(init, names), tuple(shape), jnp.float32)
  # Cast first: what travels between devices is then the smaller one.
  return placement.constrain(value.astype(dtype), names)


class Dense(nn.Module):
  """x[..., in] @ kernel[in, *features] (+ bias): [..., *features].

  The product is taken on 2-D shapes: XLA:CPU computes weight gradients of higher ranks 4x slower (FACTS "Measured").
  """

  features: tuple[int, ...]
  names: Names  # Of the kernel: input dimension, then features.
  bias: bool = True
  scale: float = 1.0  # Of the initial deviation; residual outputs start smaller.
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    kernel = param(
      self, 'kernel', fan_in(scale=self.scale), (width, *self.features), self.names, self.dtype
    )
    flat = x.astype(self.dtype).reshape(-1, width) @ kernel.reshape(width, -1)
    out = flat.reshape(*x.shape[:-1], *self.features)
    if self.bias:
      out += param(self, 'bias', nn.initializers.zeros, self.features, self.names[1:], self.dtype)
    return out


class LayerNorm(nn.Module):
  """Layer norm over the last dimension, statistics in float32; returns `dtype`."""

  eps: float
  name_axis: str = 'encoder_embed'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = param(self, 'scale', nn.initializers.ones, x.shape[-1:], (self.name_axis,))
    bias = param(self, 'bias', nn.initializers.zeros, x.shape[-1:], (self.name_axis,))
    x = x.astype(jnp.float32)
    x -= x.mean(axis=-1, keepdims=True)
    x *= jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
    return (x * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
  """Root-mean-square norm over the last dimension in float32; returns `dtype`."""

  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = param(self, 'scale', nn.initializers.ones, x.shape[-1:], ('embed',))
    x = x.astype(jnp.float32)
    x *= jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
    return (x * scale).astype(self.dtype)


class PatchEmbed(nn.Module):
  """[B,Y,X,3] -> [B,G,G,features]: a convolution whose stride is its size, as one matrix product."""

  patch: int
  features: int
  bias: bool = True
  name_in: str | None = None
  name_out: str = 'encoder_embed'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, size, _, channels = x.shape
    patch, grid = self.patch, size // self.patch
    kernel = param(
      self,
      'kernel',
      fan_in(axes=3),
      (patch, patch, channels, self.features),
      (None, None, self.name_in, self.name_out),
      self.dtype,
    )
    x = x.astype(self.dtype).reshape(batch, grid, patch, grid, patch, channels).swapaxes(2, 3)
    out = (x.reshape(batch * grid * grid, -1) @ kernel.reshape(-1, self.features)).reshape(
      batch, grid, grid, -1
    )
    if self.bias:
      out += param(
        self, 'bias', nn.initializers.zeros, (self.features,), (self.name_out,), self.dtype
      )
    return out


def activate(name: str, x: jax.Array) -> jax.Array:
  """'gelu' (the exact one, with erf) or 'quick_gelu' (x * sigmoid(1.702 x))."""
  return jax.nn.gelu(x, approximate=False) if name == 'gelu' else x * jax.nn.sigmoid(1.702 * x)


# What the backward pass finds, and does not compute again. An attention kernel names its output 'attention'.
REMAT = {
  'none': None,
  'attention': jax.checkpoint_policies.save_only_these_names('attention'),
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


def stack(
  layer: type[nn.Module], length: int, unroll: int, remat: str, scanned: int = 0, broadcast: int = 0
) -> Callable:
  """`layer` scanned `length` times over stacked parameters: makes modules called as (x, *scanned, *broadcast) -> (x, outs).

  Args:
    layer: a module called as (x, *scanned, *broadcast) -> (x, out).
    length: number of layers.
    unroll: layers a loop iteration holds.
    remat: a name of `REMAT`: 'none' keeps all of a layer's insides for the backward pass, 'full' computes them again,
      'dots' keeps the outputs of products with weights, 'attention' that of attention.
    scanned: number of arguments with a leading layer axis.
    broadcast: number of arguments that every layer sees whole.

  Raises:
    SphinxError: for an unknown name.
  """
  if remat not in REMAT:
    raise errors.unknown('model.remat', remat, REMAT)
  if remat != 'none':
    layer = nn.remat(layer, prevent_cse=False, policy=REMAT[remat])
  return nn.scan(
    layer,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=(0,) * scanned + (nn.broadcast,) * broadcast,
    length=length,
    unroll=min(unroll, length),
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )


def compiler_options() -> dict[str, str]:
  """Options of `jax.jit` for a forward pass over scanned layers whose parameters rest in bfloat16.

  XLA:CPU cannot slice bfloat16: it widens the stack of all layers to float32 and moves that out of their loop, a copy of
  the whole model at every call. Left inside, the widening becomes part of reading one layer. Elsewhere there are none.
  """
  return (
    {'xla_disable_hlo_passes': 'while-loop-invariant-code-motion'}
    if jax.default_backend() == 'cpu'
    else {}
  )
