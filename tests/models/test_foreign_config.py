"""Every field of every foreign config with odd values: used, known to be neutral, or refused."""

import copy
import math

import pytest

from sphinx_jax.checkpoint.foreign import sources
from sphinx_jax.core import errors
from sphinx_jax.models import foreign_config, forms, variants
from tests import release
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA, META
from tests.models import idefics2_golden

ODD = (
  None,
  True,
  False,
  -1,
  0,
  3,
  7.5,
  10**9,
  math.nan,
  math.inf,
  '',
  'odd',
  [],
  ['odd'],
  ['silu'],
  ['gelu'],
  {},
  {'a': 1},
)
UNKNOWN = ('logit_scale', 'scale_emb', 'qk_norm', 'rope_interleaved', 'num_experts')
# Fields whose allowed values choose between computations that the model has.
CHOICES = ('hidden_act', 'quick_gelu', 'load_pretrained_visual_encoder')
# What a refusal may name in place of the field: two fields contradict each other.
PARTNERS = {
  'hidden_size': ('head_dim',),
  'num_attention_heads': ('head_dim', 'num_key_value_heads'),
  'n_heads': ('n_kv_heads',),
  'resampler_n_heads': ('num_key_value_heads',),
  'vocab_size': ('image_token_id',),
}
OPEN_CLIP = {
  'clip_open_clip.bin': {
    'model_cfg': {
      'embed_dim': 8,
      'quick_gelu': True,
      'vision_cfg': {
        'image_size': 224,
        'layers': 2,
        'width': 32,
        'patch_size': 14,
        'head_width': 8,
      },
      'text_cfg': {},
    },
    'preprocess_cfg': {'mean': [0.5, 0.5, 0.5]},
  },
  'convnext_open_clip.bin': {
    'model_cfg': {
      'embed_dim': 8,
      'vision_cfg': {'timm_model_name': 'convnext_golden', 'timm_pool': '', 'image_size': 256},
    }
  },
}


def opened(name: str) -> tuple:
  """Returns form, shapes, config and fields of a golden file."""
  if name == 'official':
    form, fields = variants.LLMS['llama'], variants.config_fields('llama')
    return form, release.llama_shapes(), release.CONFIG, fields
  source = sources.open_source(
    idefics2_golden.FOLDER / 'model' if name == 'idefics2' else GOLDEN / name
  )
  form = forms.FORMS[source.part][source.form]
  shapes = {key: tensor.shape for key, tensor in source.tensors.items()}
  if name in OPEN_CLIP:
    return form, shapes, OPEN_CLIP[name], form.configs['open_clip_config.json']
  return form, shapes, source.config, list(form.configs.values())[-1]


def places(fields: foreign_config.Fields, config: dict, path: tuple = ()):
  """Yields (path of an object, its fields) of a config and its sections."""
  yield path, fields
  for name, section in fields.sections.items():
    if isinstance(config.get(name), dict):
      yield from places(section, config[name], (*path, name))


@pytest.mark.parametrize(
  'name',
  [
    LLAMA,
    META,
    'official',
    'clip_hf',
    'convnext_timm',
    'dinov2_hf',
    'blip2_hf',
    'idefics2',
    *OPEN_CLIP,
  ],
)
def test_every_field_is_used_or_neutral_or_refused_by_name(name):
  form, shapes, config, fields = opened(name)

  def read(config: dict) -> dict:
    return sources.read_settings(form, shapes, config, fields, 'source')

  whole, tried = read(config), 0
  for path, part in places(fields, config):
    neutral = {field for names in part.neutral.values() for field in names}
    for field in (*part.used, *neutral, *part.only, *part.sizes, *part.sections, *UNKNOWN):
      for value in ODD:
        changed = copy.deepcopy(config)
        target = changed
        for key in path:
          target = target[key]
        before, target[field] = target.get(field), value
        tried += 1
        case = (*path, field, value)
        try:
          settings = read(changed)
        except errors.SphinxError as error:
          assert field not in neutral, case
          words = (field, *PARTNERS.get(field, ()))
          assert any(word in str(error) for word in words), (case, str(error))
          assert '\n' not in str(error)
          continue
        assert field not in UNKNOWN, case
        if field in part.only and isinstance(value, list):
          assert field in ('architectures', 'layer_types'), case
        if field in neutral or (field in part.only and field not in CHOICES):
          assert settings == whole, case
        if field in part.sizes:
          assert value in (None, before), case
  assert tried > 250


def test_an_open_clip_config_gives_heads_and_activation():
  form, shapes, config, fields = opened('clip_open_clip.bin')
  settings = sources.read_settings(form, shapes, config, fields, 'source')
  assert (settings['heads'], settings['activation']) == (4, 'quick_gelu')
  assert sources.open_source(GOLDEN / 'clip_open_clip.bin').settings['activation'] == 'gelu'


def test_older_configs_of_clip_list_every_default():
  form, shapes, config, fields = opened('clip_hf')
  old = {
    name: None
    for reason, names in fields.neutral.items()
    for name in names
    if 'next token' in reason or 'classifiers' in reason
  }
  defaults = {'add_cross_attention': False, 'pruned_heads': {}, 'tie_word_embeddings': True}
  vision = config['vision_config'] | old | defaults
  older = config | {'vision_config': vision, 'vision_config_dict': {'hidden_act': 'gelu'}}
  settings = sources.read_settings(form, shapes, older, fields, 'source')
  assert settings == sources.open_source(GOLDEN / 'clip_hf').settings | {'activation': 'gelu'}
