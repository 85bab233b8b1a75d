"""CLIP's vision transformer (open_clip ViT-L-14, FACTS "CLIP"): ln_post on all tokens, no output projection."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.models import foreign, layers
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
  activation: str = (
    'gelu'  # 'quick_gelu' is what OpenAI's weights were trained with (FACTS "CLIP").
  )
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    grid = vit.grid_of('clip', self.view, self.patch)
    x = layers.PatchEmbed(self.patch, self.width, bias=False, dtype=self.dtype, name='patch')(
      images
    )
    cls = layers.param(
      self, 'cls', nn.initializers.normal(self.width**-0.5), (self.width,), ('encoder_embed',)
    )
    table = layers.param(
      self, 'positions', layers.sincos_2d(1), (1 + grid * grid, self.width), (None, 'encoder_embed')
    )
    x = vit.with_class(cls, x) + table.astype(self.dtype)
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='norm_pre')(x)
    x = vit.Trunk(
      self.layers,
      self.heads,
      int(self.width * self.mlp_ratio),
      EPS,
      self.activation,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      name='trunk',
    )(x)
    return vit.split(layers.LayerNorm(EPS, dtype=self.dtype, name='norm_post')(x), grid)


# Sizes by their names elsewhere; 'golden' is that of the official code's recorded numbers (tests/golden).
SIZES = {
  'ViT-L-14': dict(view=224, patch=14, width=1024, layers=24, heads=16),
  'golden': dict(view=224, patch=14, width=32, layers=2, heads=4),
}


def _open_clip(settings: Any) -> list[foreign.Weight]:
  block = [
    *foreign.norm('norm1', 'ln_1'),
    *foreign.packed('attention/qkv', 'attn.in_proj_weight', 'attn.in_proj_bias', 3),
    *foreign.linear('attention/out', 'attn.out_proj'),
    *foreign.norm('norm2', 'ln_2'),
    *foreign.linear('mlp/up', 'mlp.c_fc'),
    *foreign.linear('mlp/down', 'mlp.c_proj'),
  ]
  return foreign.within(
    '',
    'visual.',
    [
      *foreign.patches('patch', 'conv1', bias=False),
      *foreign.tensor('cls', 'class_embedding', 'e -> e'),
      *foreign.tensor('positions', 'positional_embedding', 'n e -> n e'),
      *foreign.norm('norm_pre', 'ln_pre'),
      *foreign.within(
        'trunk/layers/', 'transformer.resblocks.{}.', block, range(settings['layers'])
      ),
      *foreign.norm('norm_post', 'ln_post'),
    ],
  )


def _huggingface(settings: Any) -> list[foreign.Weight]:
  block = [
    *foreign.norm('norm1', 'layer_norm1'),
    *foreign.unpacked('attention/qkv', [f'self_attn.{name}_proj' for name in 'qkv']),
    *foreign.linear('attention/out', 'self_attn.out_proj'),
    *foreign.norm('norm2', 'layer_norm2'),
    *foreign.linear('mlp/up', 'mlp.fc1'),
    *foreign.linear('mlp/down', 'mlp.fc2'),
  ]
  return [
    *foreign.patches('patch', 'embeddings.patch_embedding', bias=False),
    *foreign.tensor('cls', 'embeddings.class_embedding', 'e -> e'),
    *foreign.tensor('positions', 'embeddings.position_embedding.weight', 'n e -> n e'),
    *foreign.norm('norm_pre', 'pre_layrnorm'),  # Their spelling.
    *foreign.within('trunk/layers/', 'encoder.layers.{}.', block, range(settings['layers'])),
    *foreign.norm('norm_post', 'post_layernorm'),
  ]


def _settings(patches: str, positions: str, up: str, activation: str) -> Any:
  def read(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    width, _, patch, _ = shapes[patches]
    config = config.get('vision_config', config)
    # OpenAI's file describes itself, and was trained with QuickGELU; open_clip's own have the exact one. A config of
    # transformers may leave out what is its class's default, QuickGELU.
    quick = config.get('hidden_act', activation) == 'quick_gelu' or 'input_resolution' in shapes
    return dict(
      view=patch * math.isqrt(shapes[positions][0] - 1),
      patch=patch,
      width=width,
      layers=foreign.count(shapes, up),
      heads=foreign.heads('clip', SIZES, width, config=config),
      mlp_ratio=shapes[up.format(0)][0] / width,
      activation='quick_gelu' if quick else 'gelu',
    )

  return read


FORMS = {
  'open_clip': foreign.Form(
    'CLIP of OpenAI or open_clip',
    'visual.conv1.weight',
    _open_clip,
    _settings(
      'visual.conv1.weight',
      'visual.positional_embedding',
      'visual.transformer.resblocks.{}.mlp.c_fc.weight',
      'gelu',
    ),
    # The text half, which no SPHINX uses. OpenAI's file also holds three numbers about itself.
    unused=(
      r'positional_embedding',
      r'text_projection',
      r'logit_scale',
      r'visual\.proj',
      r'token_embedding\.weight',
      r'ln_final\.(weight|bias)',
      r'transformer\..*',
      r'text\..*',
      r'attn_mask',
      r'input_resolution',
      r'context_length',
      r'vocab_size',
    ),
  ),
  'hf': foreign.Form(
    'CLIP of HF transformers',
    'pre_layrnorm.weight',
    _huggingface,
    _settings(
      'embeddings.patch_embedding.weight',
      'embeddings.position_embedding.weight',
      'encoder.layers.{}.mlp.fc1.weight',
      'quick_gelu',
    ),
    # The vision half saved alone by transformers 5 is without the prefix.
    unused=(r'embeddings\.position_ids',),
    prefixes=('vision_model.', ''),
  ),
}
