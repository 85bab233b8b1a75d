"""Names, shapes and parameter counts of the official models at full size, without weights."""

import functools
import json
import math
import pathlib
import re

import pytest

from sphinx_jax.core import errors
from sphinx_jax.models import variants
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
RECORDED = json.loads((GOLDEN / 'full_size_facts.json').read_text())
ENCODERS = dict(
  clip=clip.SIZES['ViT-L-14'],
  convnext=convnext.SIZES['xxlarge'],
  dinov2=dinov2.SIZES['ViT-g-14'],
  qformer=qformer.SIZES['BLIP-2'],
)
# Name of the recorded keys -> size of the language model.
RELEASES = {'llama_ens': '13b', 'llama_ens_light': '1b'}


def config(name, size):
  return variants.model(name, llama.SIZES[size], ENCODERS)


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
  return {key.removeprefix('llma.'): tuple(shape) for key, shape in recorded.items()}


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
  assert layers == set(range(llama.SIZES[RELEASES[name]]['layers']))


@pytest.mark.parametrize('name', RELEASES)
def test_parameter_counts_are_those_of_the_official_module(name):
  actual, facts = shapes(name, RELEASES[name]), RECORDED[name]
  assert not actual.keys() & set(facts['buffers'])  # Those are neither stored nor counted.
  for part, expected in facts['params'].items():
    if part == 'layers':
      start = 'layers.0.'  # The recorded module has one layer.
    elif part.endswith('_img'):
      start = part
    else:
      start = f'{part}.'
    assert count(actual, start) == expected, part
  assert {key for key in actual if not key.startswith(tuple(facts['params']))} == set()
  assert llama.ffn_width(config(name, RELEASES[name]).llm.width, 256, None) == facts['ffn_hidden']


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
  ],
)
def test_views_change_no_weight(name, of):
  assert shapes(name, '1b') == shapes(of, '1b')


@pytest.mark.parametrize('name', variants.VARIANTS)
def test_a_config_has_the_name_of_its_variant(name):
  assert variants.name_of(config(name, '1b')) == name


def test_an_unknown_variant_and_a_missing_encoder_are_named():
  with pytest.raises(
    errors.SphinxError, match="llama_type: got 'llama_ens6'.*did you mean 'llama_ens'"
  ):
    variants.variant('llama_ens6')
  with pytest.raises(errors.SphinxError, match='give the weights of dinov2 too'):
    variants.model('llama_ens_light', llama.SIZES['1b'], {'convnext': ENCODERS['convnext']})
