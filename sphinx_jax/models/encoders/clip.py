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

from sphinx_jax.models import foreign, foreign_config, layers
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

  @property
  def side(self) -> int:
    """G. Raises SphinxError if the patch does not divide the view."""
    return vit.patches_per_side('clip', self.view, self.patch)

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    side = self.side
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


def _from_open_clip(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  model = foreign_config.section(config, 'model_cfg')
  vision = foreign_config.section(model, 'vision_cfg')
  width = shapes['visual.conv1.weight'][0]
  heads = {}
  if vision.get('head_width') is not None:
    heads = {'num_attention_heads': width // foreign_config.divisor(vision, 'head_width', width)}
  # OpenAI's own file has the tensor 'input_resolution' and was trained with QuickGELU. Other files
  # of open_clip have the exact GELU unless their config names the other.
  quick = 'input_resolution' in shapes or model.get('quick_gelu')
  return _sizes(
    shapes,
    'visual.conv1.weight',
    'visual.positional_embedding',
    'visual.transformer.resblocks.{}.mlp.c_fc.weight',
    heads,
    'quick_gelu' if quick else 'gelu',
  )


def _from_huggingface(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  # A file may hold both halves, or the vision half alone. Older releases of transformers wrote
  # changes into vision_config_dict, which goes before vision_config.
  vision = config
  if config.get('vision_config') is not None:
    vision = foreign_config.section(config, 'vision_config')
  vision = {**vision, **foreign_config.section(config, 'vision_config_dict')}
  return _sizes(
    shapes,
    'embeddings.patch_embedding.weight',
    'embeddings.position_embedding.weight',
    'encoder.layers.{}.mlp.fc1.weight',
    vision,
    vision.get('hidden_act') or 'quick_gelu',  # The default of transformers.
  )


def _sizes(
  shapes: foreign.Shapes,
  patches: str,
  positions: str,
  up: str,
  heads: Mapping[str, Any],
  activation: str,
) -> dict[str, Any]:
  """Settings from the tensors of these names; `heads` may have the number of heads."""
  width, _, patch, _ = shapes[patches]
  return dict(
    view=patch * math.isqrt(shapes[positions][0] - 1),
    patch=patch,
    width=width,
    layers=foreign.count(shapes, up),
    heads=foreign.heads('clip', SIZES, width, config=heads),
    mlp_ratio=shapes[up.format(0)][0] / width,
    activation=activation,
  )


_OPEN_CLIP_VISION = foreign_config.Fields(
  used=('head_width',),
  neutral={'training only': ('patch_dropout',)},
  only={
    'act_kwargs': (None, {}),
    'attentional_pool': (None, False),
    'final_ln_after_pool': (None, False),
    'global_average_pool': (None, False),
    'ls_init_value': (None,),
    'no_ln_pre': (None, False),
    'norm_kwargs': (None, {}),
    'output_tokens': (None, False),
    'pool_type': (None, 'tok'),
    'pos_embed_type': (None, 'learnable'),
    'timm_model_name': (None,),
  },
  sizes={
    'image_size': lambda settings: settings['view'],
    'layers': lambda settings: settings['layers'],
    'mlp_ratio': lambda settings: settings['mlp_ratio'],
    'patch_size': lambda settings: settings['patch'],
    'width': lambda settings: settings['width'],
  },
)
_HUGGINGFACE_VISION = dict(
  used=('num_attention_heads',),
  neutral={
    'the projection, which SPHINX does not use': ('projection_dim',),
    'of text halves, which share it': ('tie_word_embeddings',),
  },
  only={
    'hidden_act': (None, 'gelu', 'quick_gelu'),
    'layer_norm_eps': (None, EPS),
    'num_channels': (None, 3),
  },
  sizes={
    'hidden_size': lambda settings: settings['width'],
    'image_size': lambda settings: settings['view'],
    'intermediate_size': lambda settings: round(settings['width'] * settings['mlp_ratio']),
    'num_hidden_layers': lambda settings: settings['layers'],
    'patch_size': lambda settings: settings['patch'],
  },
)
_HUGGINGFACE_SECTION = foreign_config.transformers_fields(
  ('clip_vision_model', 'clip'), **_HUGGINGFACE_VISION
)
# The config of both halves, or of a vision half that was saved alone.
_HUGGINGFACE_FIELDS = foreign_config.transformers_fields(
  ('clip', 'clip_vision_model'),
  ('CLIPModel', 'CLIPVisionModel', 'CLIPVisionModelWithProjection'),
  **_HUGGINGFACE_VISION
  | dict(
    neutral=_HUGGINGFACE_VISION['neutral']
    | {
      'the text half': ('text_config', 'text_config_dict'),
      'the loss of CLIP': ('logit_scale_init_value',),
    },
    sections={
      'vision_config': _HUGGINGFACE_SECTION,
      'vision_config_dict': _HUGGINGFACE_SECTION,
    },
  ),
)


FORMS = {
  'open_clip': foreign.Form(
    'CLIP of OpenAI or open_clip',
    'visual.conv1.weight',
    _open_clip,
    _from_open_clip,
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
    configs={'open_clip_config.json': foreign_config.open_clip_fields(_OPEN_CLIP_VISION)},
  ),
  'hf': foreign.Form(
    'CLIP of HF transformers',
    'pre_layrnorm.weight',
    _huggingface,
    _from_huggingface,
    # transformers 5 saves a vision half alone without the prefix.
    unused=(r'embeddings\.position_ids',),
    prefixes=('vision_model.', ''),
    configs={'config.json': _HUGGINGFACE_FIELDS},
  ),
}
