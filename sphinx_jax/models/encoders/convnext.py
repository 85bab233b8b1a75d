"""ConvNeXt (open_clip XXL trunk): the head's norm applies at every position, without a classifier.

Source: docs/official_sphinx.md, "ConvNeXt".
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.core import errors
from sphinx_jax.mix import scales
from sphinx_jax.models import foreign, foreign_config, layers

EPS = 1e-5
_STEM, _KERNEL, _RATIO = 4, 7, 4


class ConvNext(nn.Module):
  """CLIP-normalized views float[B,Y,X,3] -> mean over positions [B,E] and feature map [B,G,G,E].

  Attributes:
    view: pixels along one side, Y = X.
    depths: blocks of every stage.
    widths: channels of every stage; the last is E.
    input: pixels that the view is resized to (nearest) before the stem; None does not resize.
    half_round: see `scales.resize`.
    remat: see `layers.stack`.
    unroll: see `layers.stack`.
    dtype: compute dtype.
  """

  view: int
  depths: tuple[int, ...]
  widths: tuple[int, ...]
  input: int | None = None
  half_round: bool = False
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @property
  def side(self) -> int:
    """G. Raises SphinxError if the stages do not divide the input."""
    size, stride = self.input or self.view, _STEM * 2 ** (len(self.depths) - 1)
    if size % stride:
      raise errors.make(
        'encoder convnext',
        f'an input of {size} pixels',
        f'a multiple of its stride, {stride}',
        'change input, view or the number of stages',
      )
    return size // stride

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    side = self.side
    if len(self.depths) != len(self.widths):
      raise errors.make(
        'encoder convnext',
        f'{len(self.depths)} depths and {len(self.widths)} widths',
        'one of each for every stage',
        'change one of them',
      )
    x = images
    if self.input is not None:
      x = scales.resize(x, self.input, method='nearest', half_round=self.half_round)
    x = layers.PatchEmbed(_STEM, self.widths[0], dtype=self.dtype, name='stem')(x)
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='stem_norm')(x)
    scale = sum(self.depths) ** -0.5
    for i, (depth, width) in enumerate(zip(self.depths, self.widths)):
      if i > 0:
        x = layers.LayerNorm(EPS, dtype=self.dtype, name=f'downsample_norm{i}')(x)
        x = layers.PatchEmbed(
          2,
          width,
          name_in='encoder_embed',
          name_out='encoder_out',
          dtype=self.dtype,
          name=f'downsample{i}',
        )(x)
      blocks = layers.stack(self, Block, depth, self.unroll, self.remat)
      x, _ = blocks(scale, self.dtype, name=f'stage{i}')(x)
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(x)
    mean = x.astype(jnp.float32).mean(axis=(1, 2)).astype(self.dtype)
    return mean, x.reshape(-1, side, side, x.shape[-1])


class Block(nn.Module):
  """Residual block on [B,G,G,E]: depthwise 7x7, norm, inverted bottleneck, learned gamma."""

  scale: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    width = x.shape[-1]
    kernel = layers.param(
      self,
      'depthwise',
      layers.fan_in(axes=2),
      (_KERNEL, _KERNEL, width),
      (None, None, 'encoder_embed'),
      self.dtype,
    )
    bias = layers.param(
      self, 'depthwise_bias', nn.initializers.zeros, (width,), ('encoder_embed',), self.dtype
    )
    gamma = layers.param(
      self, 'gamma', nn.initializers.ones, (width,), ('encoder_embed',), self.dtype
    )
    up = layers.Dense(
      (_RATIO * width,), ('encoder_embed', 'encoder_ffn'), dtype=self.dtype, name='up'
    )
    down = layers.Dense(
      (width,), ('encoder_ffn', 'encoder_embed'), scale=self.scale, dtype=self.dtype, name='down'
    )
    y = depthwise(x, kernel) + bias
    y = layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(y)
    y = down(layers.activate('gelu', up(y)))
    return x + gamma * y, None


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves every channel of [B,Y,X,E] with its own [7,7,E] kernel, zero border.

  On a CPU this is a sum of 49 shifted products: XLA's grouped convolution is over ten times slower
  there (docs/official_sphinx.md, "Measured").
  """
  return jax.lax.platform_dependent(x, kernel, cpu=depthwise_shifted, default=depthwise_grouped)


@jax.custom_vjp
def depthwise_shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise` as shifted products, with a custom gradient."""
  size, padded = x.shape[1], _pad(x)
  return sum(
    padded[:, i : i + size, j : j + size] * kernel[i, j]
    for i in range(_KERNEL)
    for j in range(_KERNEL)
  )


def _pad(x: jax.Array) -> jax.Array:
  border = _KERNEL // 2
  return jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))


def _shifted_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
  return depthwise_shifted(x, kernel), (x, kernel)


def _shifted_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  # The kernel's gradient is computed shift by shift and summed over positions by a product with
  # ones. On a CPU this is 3x faster than the derivative of the 49 products, whose sums XLA:CPU
  # computes column by column.
  x, kernel = saved
  padded = _pad(x)
  ones = jnp.ones((1, gradient.size // gradient.shape[-1]), x.dtype)

  def of_shift(shift: jax.Array) -> jax.Array:
    corner = (0, shift // _KERNEL, shift % _KERNEL, 0)
    product = jax.lax.dynamic_slice(padded, corner, gradient.shape) * gradient
    flat = product.reshape(-1, gradient.shape[-1])
    return jnp.matmul(ones, flat, preferred_element_type=jnp.float32)[0]

  by_shift = jax.lax.map(of_shift, jnp.arange(_KERNEL**2))
  kernel_gradient = by_shift.reshape(kernel.shape).astype(kernel.dtype)
  return depthwise_shifted(gradient, kernel[::-1, ::-1]), kernel_gradient


depthwise_shifted.defvjp(_shifted_forward, _shifted_backward)


def depthwise_grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise` as XLA's convolution with one feature group per channel."""
  return jax.lax.conv_general_dilated(
    x,
    kernel[:, :, None],
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


SIZES = {
  'xxlarge': dict(depths=(3, 4, 30, 3), widths=(384, 768, 1536, 3072)),
  'golden': dict(depths=(1, 1, 2, 1), widths=(8, 16, 24, 32)),
}


def _timm(settings: Any) -> list[foreign.Weight]:
  block = [
    *foreign.tensor('gamma', 'gamma', 'e -> e'),
    *foreign.tensor('depthwise', 'conv_dw.weight', 'e 1 y x -> y x e'),
    *foreign.tensor('depthwise_bias', 'conv_dw.bias', 'e -> e'),
    *foreign.norm('norm', 'norm'),
    *foreign.linear('up', 'mlp.fc1'),
    *foreign.linear('down', 'mlp.fc2'),
  ]
  table = [
    *foreign.patches('stem', 'stem.0'),
    *foreign.norm('stem_norm', 'stem.1'),
    *foreign.norm('norm', 'head.norm'),
  ]
  for i, depth in enumerate(settings['depths']):
    table += foreign.within(f'stage{i}/', f'stages.{i}.blocks.{{}}.', block, range(depth))
    if i > 0:
      table += [
        *foreign.norm(f'downsample_norm{i}', f'stages.{i}.downsample.0'),
        *foreign.patches(f'downsample{i}', f'stages.{i}.downsample.1'),
      ]
  return table


def _settings(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  stages = foreign.count(shapes, 'stages.{}.blocks.0.gamma')
  gamma = [f'stages.{i}.blocks.{{}}.gamma' for i in range(max(stages, 1))]
  width = shapes['stem.0.weight'][0]
  if not config and width in _OTHER_STEMS:
    raise errors.make(
      'encoder convnext', f'a stem of width {width}', '384 (xxlarge)', 'others are not supported'
    )
  return dict(
    depths=tuple(foreign.count(shapes, key) for key in gamma),
    widths=tuple(shapes[key.format(0)][0] for key in gamma),
  )


# Width of timm's atto (and femto, pico, nano ...) to xlarge, which have another EPS.
_OTHER_STEMS = (40, 48, 64, 80, 96, 128, 192, 256)
_PREPARATION = 'how images are prepared, which SPHINX decides'
_NAMES = tuple(f'convnext_{size}' for size in SIZES)  # Others have another EPS.
_TIMM_FIELDS = foreign_config.Fields(
  marks=('architecture',),
  neutral={
    _PREPARATION: ('pretrained_cfg', 'global_pool'),
    'the classifier': ('num_classes', 'label_names', 'label_descriptions'),
  },
  only={'architecture': _NAMES},
  sizes={'num_features': lambda settings: settings['widths'][-1]},
  sections={
    'model_args': foreign_config.Fields(
      neutral={
        'the classifier': ('num_classes', 'global_pool'),
        'training only': ('drop_rate', 'drop_path_rate', 'ls_init_value'),
      },
      only={'in_chans': (None, 3), 'norm_eps': (None, EPS)},
      sizes={
        'depths': lambda settings: list(settings['depths']),
        'dims': lambda settings: list(settings['widths']),
      },
    )
  },
)
_OPEN_CLIP_VISION = foreign_config.Fields(
  marks=('timm_model_name',),
  neutral={
    _PREPARATION: ('image_size',),
    'the projection': ('timm_pool', 'timm_proj', 'timm_proj_bias', 'timm_model_pretrained'),
    'training only': ('timm_drop', 'timm_drop_path', 'patch_dropout'),
  },
  only={'timm_model_name': _NAMES},
)

FORMS = {
  # open_clip wraps timm's trunk, and adds a projection and the text half.
  'timm': foreign.Form(
    'ConvNeXt of timm or open_clip',
    'stem.0.weight',
    _timm,
    _settings,
    prefixes=('', 'visual.trunk.', 'trunk.'),
    unused=(r'head\.fc\.(weight|bias)',),
    configs={
      'open_clip_config.json': foreign_config.open_clip_fields(_OPEN_CLIP_VISION),
      'config.json': _TIMM_FIELDS,
    },
  ),
}
