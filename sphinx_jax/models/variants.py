"""The official SPHINX models: sizes of every variant, and names of the whole model's weights.

Sources: docs/official_sphinx.md, "Views" and "Released checkpoints";
tests/golden/models/full_size_keys_*.json, recorded from the official code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from sphinx_jax.core import errors, trees
from sphinx_jax.models import families, foreign, foreign_config, multimodal
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama, mixtral

# Official name (llama_type in meta.json) -> language model, pixels, views and encoders. The
# settings of ConvNeXt differ: the light and the Mixtral variants do not change the size of its
# views. `input` still rounds them to half precision, which those with several views do not do.
_FOUR = ('clip', 'convnext', 'dinov2', 'qformer')
_ENS = dict(llm=dict(name='llama'), encoders=_FOUR, convnext=dict(view=224, input=256))
_LIGHT = ('convnext', 'dinov2')
_512 = dict(image_size=512, grid=1, pool=1, convnext=dict(view=512, input=512))
_1024 = dict(image_size=1024, grid=2, pool=1, convnext=dict(view=512))
_LLAMA, _MIXTRAL = dict(llm=dict(name='llama')), dict(llm=dict(name='mixtral', balance_weight=0.1))
VARIANTS = {
  'llama_ens': dict(image_size=224, grid=1, pool=1, **_ENS),
  'llama_ens5': dict(image_size=448, grid=2, pool=1, **_ENS),
  'llama_ens10': dict(image_size=672, grid=3, pool=1, **_ENS),
  'llama_ens5p2': dict(image_size=448, grid=2, pool=2, **_ENS),
  'llama_ens_light': dict(**_LLAMA, **_512, encoders=_LIGHT),
  'llama_ens5_light': dict(**_LLAMA, **_1024, encoders=_LIGHT),
  'mixtral_sparse_ens': dict(**_MIXTRAL, **_512, encoders=_FOUR),
  'mixtral_sparse_ens5': dict(
    llm=dict(name='mixtral', balance_weight=0.01), **_1024, encoders=_FOUR
  ),
}
# Official names of language models alone.
TEXT = ('mixtral', 'mixtral_sparse')
# Encoder -> prefix of its official names, and the form of the names after the prefix.
ENCODERS = {
  'clip': ('clip.', clip.FORMS['open_clip']),
  'convnext': ('openclip_convnext_xxl.', convnext.FORMS['timm']),
  'dinov2': ('dinov2_vitg14.', dinov2.FORMS['original']),
  'qformer': ('qformer.', qformer.FORMS['hf']),
}
# Kind of language model -> its form in a release.
LLMS = {'llama': llama.FORMS['meta'], 'mixtral': mixtral.FORMS['mixtral_sparse']}


def config_fields(llm: str) -> foreign_config.Fields:
  """The fields of the config.json of a release with this kind of language model."""
  fields = LLMS[llm].configs['config.json']
  trainer = {'which parameters the official trainer updates': ('trainable_mode',)}
  return dataclasses.replace(
    fields,
    neutral={**fields.neutral, **trainer},
    only={**fields.only, 'load_pretrained_visual_encoder': (None, False, True)},
  )


# Tensors of a release that the model does not use, with their full-size shapes: the text half of
# CLIP, and DINOv2's mask token.
UNUSED = {
  'clip.positional_embedding': (77, 768),
  'clip.text_projection': (768, 768),
  'clip.logit_scale': (),
  'clip.visual.proj': (1024, 768),
  'clip.token_embedding.weight': (49408, 768),
  'clip.ln_final.weight': (768,),
  'clip.ln_final.bias': (768,),
  'dinov2_vitg14.mask_token': (1, 1536),
}


def variant(name: str) -> Mapping[str, Any]:
  """A row of VARIANTS.

  Raises:
    SphinxError: an unknown name.
  """
  if name not in VARIANTS:
    raise errors.unknown('llama_type', name, VARIANTS)
  return VARIANTS[name]


def model(
  name: str,
  llm: Mapping[str, Any],
  encoders: Mapping[str, Mapping[str, Any]],
  dtype: str = 'float32',
  half_round: bool = True,
) -> ml_collections.ConfigDict:
  """The model config of a variant.

  Args:
    name: a name in VARIANTS.
    llm: settings of the language model, LLaMA unless they name another kind.
    encoders: settings of at least the variant's encoders.
    dtype: compute dtype.
    half_round: round resized images to half precision, as the official code does.

  Raises:
    SphinxError: an unknown variant, or missing settings of one of its encoders.
  """
  row = variant(name)
  missing = [part for part in row['encoders'] if part not in encoders]
  if missing:
    raise errors.make(
      f'model {name}',
      f'encoders {sorted(encoders)}',
      f'{", ".join(row["encoders"])}',
      f'give the weights of {", ".join(missing)} too',
    )
  parts = {part: dict(encoders[part]) for part in row['encoders']}
  parts['convnext'] |= row['convnext']
  sizes = {key: row[key] for key in ('image_size', 'grid', 'pool')}
  kind = llm.get('name', 'llama')
  defaults = row['llm'] if row['llm']['name'] == kind else {}
  return _config({**defaults, **llm}, parts, dtype, **sizes, half_round=half_round)


def language_model(llm: Mapping[str, Any], dtype: str = 'float32') -> ml_collections.ConfigDict:
  """The model config of a language model alone."""
  return _config(llm, {}, dtype, image_size=1, grid=1, pool=1, half_round=False)


def _config(
  llm: Mapping[str, Any], encoders: Mapping[str, Any], dtype: str, **image_settings: Any
) -> ml_collections.ConfigDict:
  """A model config; `image_settings` are image_size, grid, pool and half_round."""
  settings = dict(**image_settings, encoders=encoders, llm={'name': 'llama', **llm})
  return multimodal.model_config(settings, dtype)


def name_of(config: ml_collections.ConfigDict) -> str:
  """The official name of a model config.

  Raises:
    SphinxError: no official variant has this language model, or these pixels, views and encoders.
  """
  for name, row in VARIANTS.items():
    if _matches(config, row):
      return name
  raise errors.make(
    'official form',
    f'a {config.llm.name} with images of {config.image_size} pixels, grid {config.grid}, '
    f'pool {config.pool}, '
    f'encoders {", ".join(config.encoders)}',
    f'one of {", ".join(VARIANTS)}',
    'the official code has no such model; --to=hf exports its language model',
  )


def _matches(config: ml_collections.ConfigDict, row: Mapping[str, Any]) -> bool:
  """Whether a model config has the language model, pixels, views and encoders of a row."""
  if config.llm.name != row['llm']['name']:
    return False
  if set(config.encoders) != set(row['encoders']):
    return False
  if any(config[key] != row[key] for key in ('image_size', 'grid', 'pool')):
    return False
  convnext = config.encoders.convnext
  return all(convnext.get(key) == row['convnext'].get(key) for key in ('view', 'input'))


def weights(config: ml_collections.ConfigDict) -> list[foreign.Weight]:
  """The table of a whole model: native paths from the root, official names without 'llma.'."""
  table = foreign.within('llm/', '', LLMS[config.llm.name].weights(config.llm))
  if not config.encoders:
    return table
  for part, (key, form) in ENCODERS.items():
    if part in config.encoders:
      table += foreign.within(f'encoders/{part}/', key, form.weights(config.encoders[part]))
  for name in ('start_img', 'end_img'):
    table += foreign.tensor(name, name, '1 1 d -> d')
  projections = ['visual_proj']
  if 'qformer' in config.encoders:
    projections.append('qformer_proj')
  for name in projections:
    table += [
      *foreign.linear(f'{name}/linear', f'{name}.0'),
      *foreign.norm(f'{name}/norm', f'{name}.1'),
    ]
  return table


def shapes(config: ml_collections.ConfigDict) -> dict[str, tuple[int, ...]]:
  """Official name -> shape of every tensor that a model reads. Computes nothing."""
  native, official = trees.flatten(families.abstract_params(config)), {}
  for weight in weights(config):
    shape = weight.foreign_shape(native[weight.path].shape)
    for _, key in weight.places():
      official[key] = shape
  return official
