"""BLIP-2's ViT and Q-Former: learned queries that attend to an image.

Source: docs/official_sphinx.md, "BLIP-2".
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.models import attention, foreign, foreign_config, layers
from sphinx_jax.models.encoders import vit

VIT_EPS = 1e-6
EPS = 1e-12


class QFormer(nn.Module):
  """CLIP-normalized views float[B,Y,X,3] -> query tokens [B,queries,width].

  The settings `vit_*` are sizes of the vision transformer; width, layers, heads and mlp are sizes
  of the Q-Former. Its even layers (0, 2, ...) cross-attend.
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
    features = Vit(
      self.view,
      self.patch,
      self.vit_width,
      self.vit_layers,
      self.vit_heads,
      self.vit_mlp,
      self.remat,
      self.unroll,
      self.dtype,
      name='vit',
    )(images)
    queries = layers.param(
      self,
      'queries',
      nn.initializers.normal(1.0),
      (self.queries, self.width),
      (None, 'encoder_embed'),
    )
    x = layers.LayerNorm(EPS, dtype=self.dtype, name='norm')(queries)
    x = jnp.broadcast_to(x, (images.shape[0], *x.shape))
    # A pair is an even layer, which cross-attends, and an odd one. With an odd number of layers the
    # last even layer has no partner.
    pairs, single = divmod(self.layers, 2)
    sizes = (self.heads, self.mlp, self.dtype)
    if pairs:
      stack = layers.stack(self, Pair, pairs, self.unroll, self.remat, broadcast=1)
      x, _ = stack(*sizes, name='pairs')(x, features)
    if single:
      x = Layer(*sizes, name='last')(x, features)
    return x


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
    side = vit.patches_per_side('qformer', self.view, self.patch)
    x = layers.PatchEmbed(self.patch, self.width, dtype=self.dtype, name='patch')(images)
    cls, table = vit.class_and_positions(self, self.width, side)
    x = vit.with_class(cls, x) + table.astype(self.dtype)
    x = vit.Trunk(
      self.layers,
      self.heads,
      self.mlp,
      VIT_EPS,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      name='trunk',
    )(x)
    return layers.LayerNorm(VIT_EPS, dtype=self.dtype, name='norm')(x)


class Pair(nn.Module):
  """An even layer and the odd one after it."""

  heads: int
  mlp: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, features: jax.Array) -> tuple[jax.Array, None]:
    x = Layer(self.heads, self.mlp, self.dtype, name='even')(x, features)
    return Layer(self.heads, self.mlp, self.dtype, name='odd')(x, None), None


class Layer(nn.Module):
  """Post-norm layer of queries x [B,Q,width].

  Self-attention, cross-attention to features [B,L,E] if there are any, and an MLP.
  """

  heads: int
  mlp: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, features: jax.Array | None) -> jax.Array:
    norm = lambda name: layers.LayerNorm(EPS, dtype=self.dtype, name=name)
    x = norm('norm_self')(x + Attention(self.heads, self.dtype, name='self')(x, x))
    if features is not None:
      x = norm('norm_cross')(x + Attention(self.heads, self.dtype, name='cross')(x, features))
    return norm('norm_mlp')(x + vit.Mlp(self.mlp, 'gelu', 1.0, self.dtype, name='mlp')(x))


class Attention(nn.Module):
  """Attention of x [B,Q,width] over `keys` [B,L,E]."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array) -> jax.Array:
    width = x.shape[-1]

    def project(name: str, inputs: jax.Array) -> jax.Array:
      names = ('encoder_embed', 'encoder_heads')
      y = layers.Dense((width,), names, dtype=self.dtype, name=name)(inputs)
      return layers.split_heads(y, self.heads)

    query, key, value = project('query', x), project('key', keys), project('value', keys)
    attended = attention.attend(query, key, value).reshape(x.shape)
    names = ('encoder_heads', 'encoder_embed')
    return layers.Dense((width,), names, dtype=self.dtype, name='out')(attended)


SIZES = {
  'BLIP-2': dict(
    view=224,
    patch=14,
    vit_width=1408,
    vit_layers=39,
    vit_heads=16,
    vit_mlp=6144,
    width=768,
    layers=12,
    heads=12,
    mlp=3072,
    queries=32,
  ),
  'golden': dict(
    view=224,
    patch=14,
    vit_width=32,
    vit_layers=2,
    vit_heads=4,
    vit_mlp=80,
    width=48,
    layers=3,
    heads=4,
    mlp=96,
    queries=32,
  ),
}


def _huggingface(settings: Any) -> list[foreign.Weight]:
  block = [
    *foreign.norm('norm1', 'layer_norm1'),
    *foreign.packed('attention/qkv', 'self_attn.qkv.weight', 'self_attn.qkv.bias', 3),
    *foreign.linear('attention/out', 'self_attn.projection'),
    *foreign.norm('norm2', 'layer_norm2'),
    *foreign.linear('mlp/up', 'mlp.fc1'),
    *foreign.linear('mlp/down', 'mlp.fc2'),
  ]
  vit_table = [
    *foreign.patches('patch', 'embeddings.patch_embedding'),
    *foreign.tensor('cls', 'embeddings.class_embedding', '1 1 e -> e'),
    *foreign.tensor('positions', 'embeddings.position_embedding', '1 n e -> n e'),
    *foreign.norm('norm', 'post_layernorm'),
    *foreign.within('trunk/layers/', 'encoder.layers.{}.', block, range(settings['vit_layers'])),
  ]
  pairs, single = divmod(settings['layers'], 2)  # See `QFormer.__call__`.
  table = [
    *foreign.within('vit/', 'vision_model.', vit_table),
    *foreign.tensor('queries', 'query_tokens', '1 q e -> q e'),
    *foreign.norm('norm', 'qformer.layernorm'),
  ]
  if pairs:
    table += [
      *foreign.within(
        'pairs/even/', 'qformer.encoder.layer.{}.', _layer(cross=True), range(0, 2 * pairs, 2)
      ),
      *foreign.within(
        'pairs/odd/', 'qformer.encoder.layer.{}.', _layer(cross=False), range(1, 2 * pairs, 2)
      ),
    ]
  if single:
    key = f'qformer.encoder.layer.{2 * pairs}.'
    table += foreign.within('last/', key, _layer(cross=True))
  return table


def _layer(cross: bool) -> list[foreign.Weight]:
  def attend(path: str, key: str) -> list[foreign.Weight]:
    table = []
    for name in ('query', 'key', 'value'):
      table += foreign.linear(f'{path}/{name}', f'{key}.attention.{name}')
    return [
      *table,
      *foreign.linear(f'{path}/out', f'{key}.output.dense'),
      *foreign.norm(f'norm_{path}', f'{key}.output.LayerNorm'),
    ]

  return [
    *attend('self', 'attention'),
    *(attend('cross', 'crossattention') if cross else ()),
    *foreign.linear('mlp/up', 'intermediate_query.dense'),
    *foreign.linear('mlp/down', 'output_query.dense'),
    *foreign.norm('norm_mlp', 'output_query.LayerNorm'),
  ]


def _settings(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  vit_width, _, patch, _ = shapes['vision_model.embeddings.patch_embedding.weight']
  positions = shapes['vision_model.embeddings.position_embedding']
  vit_up = 'vision_model.encoder.layers.{}.mlp.fc1.weight'
  up = 'qformer.encoder.layer.{}.intermediate_query.dense.weight'
  _, queries, width = shapes['query_tokens']
  return dict(
    view=patch * math.isqrt(positions[1] - 1),
    patch=patch,
    vit_width=vit_width,
    vit_layers=foreign.count(shapes, vit_up),
    vit_mlp=shapes[vit_up.format(0)][0],
    vit_heads=foreign.heads(
      'qformer',
      SIZES,
      vit_width,
      'vit_width',
      'vit_heads',
      foreign_config.section(config, 'vision_config'),
    ),
    width=width,
    layers=foreign.count(shapes, up),
    heads=foreign.heads(
      'qformer', SIZES, width, config=foreign_config.section(config, 'qformer_config')
    ),
    mlp=shapes[up.format(0)][0],
    queries=queries,
  )


_NO_TEXT = 'of the half that reads text'
_HUGGINGFACE_FIELDS = foreign_config.transformers_fields(
  ('blip-2',),
  (
    'Blip2Model',
    'Blip2ForConditionalGeneration',
    'Blip2ForImageTextRetrieval',
    'Blip2QFormerModel',
  ),
  neutral={
    'the language model and what reads the queries': (
      'text_config',
      'image_text_hidden_size',
      'image_token_index',
      'image_token_id',
      'use_decoder_only_language_model',
      'tie_word_embeddings',
    ),
  },
  sizes={'num_query_tokens': lambda settings: settings['queries']},
  sections={
    'vision_config': foreign_config.transformers_fields(
      ('blip_2_vision_model',),
      used=('num_attention_heads',),
      neutral={_NO_TEXT: ('projection_dim', 'tie_word_embeddings')},
      only={
        'hidden_act': (None, 'gelu'),
        'layer_norm_eps': (None, VIT_EPS),
        'num_channels': (None, 3),
        'qkv_bias': (None, True),
      },
      sizes={
        'hidden_size': lambda settings: settings['vit_width'],
        'image_size': lambda settings: settings['view'],
        'intermediate_size': lambda settings: settings['vit_mlp'],
        'num_hidden_layers': lambda settings: settings['vit_layers'],
        'patch_size': lambda settings: settings['patch'],
      },
    ),
    'qformer_config': foreign_config.transformers_fields(
      ('blip_2_qformer',),
      used=('num_attention_heads',),
      neutral={
        _NO_TEXT: (
          'max_position_embeddings',
          'vocab_size',
          'use_qformer_text_input',
          'tie_word_embeddings',
        )
      },
      only={
        'cross_attention_frequency': (None, 2),
        'hidden_act': (None, 'gelu'),
        'layer_norm_eps': (None, EPS),
        'position_embedding_type': (None, 'absolute'),
      },
      sizes={
        'encoder_hidden_size': lambda settings: settings['vit_width'],
        'hidden_size': lambda settings: settings['width'],
        'intermediate_size': lambda settings: settings['mlp'],
        'num_hidden_layers': lambda settings: settings['layers'],
      },
    ),
  },
)

FORMS = {
  'hf': foreign.Form(
    'BLIP-2 of HF transformers',
    'qformer.layernorm.weight',
    _huggingface,
    _settings,
    # SPHINX does not use BLIP-2's language model, nor the half of the Q-Former that reads text.
    unused=(
      r'language_model\..*',
      r'language_projection\..*',
      r'(qformer\.)?embeddings\..*',
      r'.*\.position_ids',
      r'qformer\.encoder\.layer\.\d+\.(intermediate|output)\..*',
      r'(vision|text)_projection\..*',
      r'itm_head\..*',
    ),
    configs={'config.json': _HUGGINGFACE_FIELDS},
  ),
}
