"""Names, shapes and parameter counts of the official models at full size, without weights."""

import functools
import json
import math
import pathlib
import re

import pytest

from sphinx_jax.core import config_values as values, errors, trees
from sphinx_jax.models import families, settings, variants
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama, mixtral

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
RECORDED = json.loads((GOLDEN / 'full_size_facts.json').read_text())
_MIXTRAL = {'name': 'mixtral', **mixtral.SIZES['mixtral-8x7b']}
_OF_MIXTRAL = ('mixtral_sparse_ens', 'mixtral_sparse_ens5')
ENCODERS = dict(
  clip=clip.SIZES['ViT-L-14'],
  convnext=convnext.SIZES['xxlarge'],
  dinov2=dinov2.SIZES['ViT-g-14'],
  qformer=qformer.SIZES['BLIP-2'],
)
# Name of the recorded keys -> size of the language model.
RELEASES = {'llama_ens': '13b', 'llama_ens_light': '1b', 'mixtral_sparse_ens': 'mixtral-8x7b'}
LLMS = {**llama.SIZES, **mixtral.SIZES}


def config(name, size):
  kind = 'mixtral' if size in mixtral.SIZES else 'llama'
  return variants.model(name, {'name': kind, **LLMS[size]}, ENCODERS)


@functools.cache
def shapes(name, size):
  """Name -> shape of every tensor in a release, used by the model or not."""
  used = variants.shapes(config(name, size))
  prefixes = tuple(variants.ENCODERS[part][0] for part in config(name, size).encoders)
  unused = {key: shape for key, shape in variants.UNUSED.items() if key.startswith(prefixes)}
  assert not used.keys() & unused.keys()
  return used | unused


def golden(name):
  """Name -> shape of the official module. Only the first of its decoder layers is recorded."""
  recorded = json.loads((GOLDEN / f'full_size_keys_{name}.json').read_text())
  shape_of = lambda facts: tuple(facts['shape'] if isinstance(facts, dict) else facts)
  return {key.removeprefix('llma.'): shape_of(facts) for key, facts in recorded.items()}


def first_layer(key):
  """The name of a decoder layer's tensor in layer 0. Other names stay as they are."""
  return re.sub(r'^layers\.\d+\.', 'layers.0.', key)


def count(tensors, start):
  return sum(math.prod(shape) for key, shape in tensors.items() if key.startswith(start))


@pytest.mark.parametrize('name', RELEASES)
def test_names_and_shapes_are_those_of_the_official_module(name):
  actual, expected = shapes(name, RELEASES[name]), golden(name)
  assert {first_layer(key) for key in actual} == expected.keys()
  assert {key: shape for key, shape in actual.items() if shape != expected[first_layer(key)]} == {}
  layers = {int(key.split('.')[1]) for key in actual if key.startswith('layers.')}
  assert layers == set(range(LLMS[RELEASES[name]]['layers']))


@pytest.mark.parametrize('name', RELEASES)
def test_parameter_counts_are_those_of_the_official_module(name):
  actual, facts = shapes(name, RELEASES[name]), RECORDED[name]
  assert not actual.keys() & set(facts.get('buffers', ()))  # Those are neither stored nor counted.
  for part, expected in facts['params'].items():
    if part == 'layers':
      start = 'layers.0.'  # The recorded module has one layer.
    elif part.endswith('_img'):
      start = part
    else:
      start = f'{part}.'
    assert count(actual, start) == expected, part
  assert {key for key in actual if not key.startswith(tuple(facts['params']))} == set()
  if 'ffn_hidden' in facts:
    width = config(name, RELEASES[name]).llm.width
    assert llama.ffn_width(width, 256, None) == facts['ffn_hidden']
  if 'of_32_layers' in facts:
    assert count(actual, '') == facts['of_32_layers'] == 50_142_595_201


def test_the_mixture_alone_has_the_parameters_of_the_official_module():
  leaves = trees.flatten(families.abstract_params(variants.language_model(_MIXTRAL)))
  assert sum(math.prod(leaf.shape) for leaf in leaves.values()) == 46_702_792_704
  assert RECORDED['mixtral']['of_32_layers'] == 46_702_792_704
  assert families.count_active(variants.language_model(_MIXTRAL)) == 12_879_925_248


def test_seven_billion_differ_from_thirteen_in_width_and_layers_alone():
  small, large = shapes('llama_ens', '7b'), shapes('llama_ens', '13b')
  encoders = tuple(key for key, _ in variants.ENCODERS.values())
  narrower = lambda shape: tuple({5120: 4096, 13824: 11008}.get(size, size) for size in shape)
  assert small == {
    key: shape if key.startswith(encoders) else narrower(shape)
    for key, shape in large.items()
    if not key.startswith('layers.') or int(key.split('.')[1]) < 32
  }
  llm = ('layers.', 'tok_embeddings.', 'norm.', 'output.')
  parameters = sum(count(small, start) for start in llm)
  assert parameters == 6_738_415_616  # LLaMA-2 7B, as Meta counts it.


@pytest.mark.parametrize(
  'name, of',
  [
    ('llama_ens5', 'llama_ens'),
    ('llama_ens10', 'llama_ens'),
    ('llama_ens5p2', 'llama_ens'),
    ('llama_ens5_light', 'llama_ens_light'),
    ('mixtral_sparse_ens5', 'mixtral_sparse_ens'),
  ],
)
def test_views_change_no_weight(name, of):
  size = 'mixtral-8x7b' if name.startswith('mixtral') else '1b'
  assert shapes(name, size) == shapes(of, size)


@pytest.mark.parametrize('name', variants.VARIANTS)
def test_a_config_has_the_name_of_its_variant(name):
  size = 'mixtral-8x7b' if name.startswith('mixtral') else '1b'
  model = config(name, size)
  assert variants.name_of(model) == name
  recorded = RECORDED.get(name, {})
  assert recorded.get('image_words') in (None, families.visual_tokens(model))
  assert recorded.get('image_size') in (None, model.image_size)


@pytest.mark.parametrize('name', variants.VARIANTS)
def test_every_language_model_combines_with_every_set_of_encoders(name):
  other = '1b' if name.startswith('mixtral') else 'mixtral-8x7b'
  model = config(name, other)
  values.check(model, settings.MODEL)
  assert trees.flatten(families.abstract_params(model))
  with pytest.raises(errors.SphinxError, match='the official code has no such model'):
    variants.name_of(model)


def test_the_weights_of_balancing_losses_are_the_official_ones():
  weights = {name: config(name, 'mixtral-8x7b').llm.get('balance_weight') for name in _OF_MIXTRAL}
  assert weights == {'mixtral_sparse_ens': 0.1, 'mixtral_sparse_ens5': 0.01}


def test_an_unknown_variant_and_a_missing_encoder_are_named():
  with pytest.raises(
    errors.SphinxError, match="llama_type: got 'llama_ens6'.*did you mean 'llama_ens'"
  ):
    variants.variant('llama_ens6')
  with pytest.raises(errors.SphinxError, match='give the weights of dinov2 too'):
    variants.model('llama_ens_light', llama.SIZES['1b'], {'convnext': ENCODERS['convnext']})
