"""CLIP's vision transformer (open_clip ViT-L-14).

The last norm applies to all tokens, and there is no output projection
(docs/official_sphinx.md, "CLIP").
"""

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
  """CLIP-normalized views float[B,Y,X,3] -> class token [B,E] and feature map [B,G,G,E].

  Attributes:
    view: pixels along one side, Y = X.
    patch: pixels along one side of a patch.
    width: E.
    layers: number of blocks.
    heads: number of attention heads.
    mlp_ratio: hidden width of the MLP over E.
    activation: 'gelu', or 'quick_gelu', with which OpenAI's weights were trained
      (docs/official_sphinx.md, "CLIP").
    remat: see `layers.stack`.
    unroll: see `layers.stack`.
    dtype: compute dtype.
  """

  view: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp_ratio: float = 4
  activation: str = 'gelu'
  remat: str = 'none'
  unroll: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    side = vit.patches_per_side('clip', self.view, self.patch)
    x = layers.PatchEmbed(self.patch, self.width, bias=False, dtype=self.dtype, name='patch')(
      images
    )
    cls, table = vit.class_and_positions(self, self.width, side)
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
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='norm_post')(x)
    return vit.split_class(x, side)


# Named as the libraries do. 'golden' is the size of the numbers recorded in tests/golden.
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
    *foreign.norm('norm_pre', 'pre_layrnorm'),  # Misspelled in transformers.
    *foreign.within('trunk/layers/', 'encoder.layers.{}.', block, range(settings['layers'])),
    *foreign.norm('norm_post', 'post_layernorm'),
  ]


def _settings(patches: str, positions: str, up: str, activation: str) -> foreign.ReadSettings:
  """Reader of the settings from tensors of these names; `activation` is the form's default."""

  def read(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    width, _, patch, _ = shapes[patches]
    config = config.get('vision_config', config)
    # OpenAI's own file has the tensor 'input_resolution' and was trained with QuickGELU. Other
    # files of open_clip use the exact GELU. A config of transformers may leave out `hidden_act`,
    # whose default there is QuickGELU.
    from_openai = 'input_resolution' in shapes
    quick = from_openai or config.get('hidden_act', activation) == 'quick_gelu'
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
    # SPHINX does not use the text half. OpenAI's file also holds three numbers about itself.
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
    # transformers 5 saves a vision half alone without the prefix.
    unused=(r'embeddings\.position_ids',),
    prefixes=('vision_model.', ''),
  ),
}
