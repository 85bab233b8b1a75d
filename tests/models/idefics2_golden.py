"""The tiny Idefics2 of tests/golden/idefics2, recorded from HF transformers."""

import functools
import json
import pathlib

import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from sphinx_jax.core import trees
from sphinx_jax.models import families, idefics2

FOLDER = pathlib.Path(__file__).parents[1] / 'golden' / 'idefics2'
FACTS = json.loads((FOLDER / 'facts.json').read_text())
IMAGE = FACTS['token_ids']['image']
CASES = ('text', 'one_image', 'two_images', 'batch', 'batch_zero', 'split')


def some(*quick, of=CASES):
  """Cases as parameters; those that are not `quick` are slow. 'batch' has what the others have."""
  return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in of]


def config(**changes):
  """The model config of the folder `model`."""
  plain = dict(
    name='idefics2',
    image_size=98,
    slots=dict(shortest=42, longest=98, split=False),
    image_token=IMAGE,
    dtype='float32',
    remat='none',
    attention='auto',
    scan_unroll=1,
    vision=dict(patch=14, width=32, layers=2, heads=4, hidden=72, pos_grid=7, patch_rule='all'),
    perceiver=dict(queries=4, layers=2, heads=4, kv_heads=2, head_width=6, eps=1e-6),
    llm=dict(
      name='llama',
      vocab=515,
      width=48,
      layers=2,
      heads=4,
      kv_heads=2,
      multiple_of=96,
      ffn_multiplier=0.75,
      norm_eps=1e-5,
      window=4096,
      max_length=512,
    ),
  )
  config = ml_collections.ConfigDict(plain)
  config.update_from_flattened_dict(changes)
  return config


@functools.cache
def tensors():
  """Name in transformers -> tensor."""
  found = {}
  for file in sorted((FOLDER / 'model').glob('*.safetensors')):
    found |= safetensors.numpy.load_file(file)
  return found


def to_native(foreign):
  """Parameter tree of tensors named as in transformers."""
  native = {}
  shapes = trees.flatten(families.abstract_params(config()))
  for weight in idefics2.weights(config()):
    leaf = native.setdefault(weight.path, np.zeros(shapes[weight.path].shape, np.float32))
    for index, key in weight.places():
      leaf[index or ...] = weight.to_native(foreign[key])
  return trees.unflatten(native)


@functools.cache
def params():
  return to_native(tensors())


@functools.cache
def recorded(case):
  """Arrays of a case."""
  return dict(np.load(FOLDER / 'forward' / f'{case}.npz'))


def real_images(arrays):
  """bool[B,N]: which image slots are used; transformers leaves out images of zeros."""
  return (arrays['pixel_values'] != 0).any((2, 3, 4))


def batch(arrays):
  """The recorded inputs as fields of core/batch.py: right-padded, with pixels as they were."""
  ids, mask = arrays['input_ids'], arrays['attention_mask'].astype(bool)
  fields = {
    'tokens': np.zeros_like(ids),
    'visual_index': np.full_like(ids, -1),
    'positions': np.zeros_like(ids),
    'segments': np.zeros_like(ids),
  }
  for b, row in enumerate(row[m] for row, m in zip(ids, mask)):
    n, is_visual = len(row), row == IMAGE
    fields['tokens'][b, :n] = np.where(is_visual, 0, row)
    fields['visual_index'][b, :n][is_visual] = np.arange(is_visual.sum())
    fields['positions'][b, :n] = np.arange(n)
    fields['segments'][b, :n] = 1
  if 'pixel_values' not in arrays:
    images = np.zeros((len(ids), 0, 98, 98, 3), np.uint8)
    return fields | {'images': images, 'image_size': np.zeros((len(ids), 0, 2), np.int32)}
  inside = arrays['pixel_attention_mask'] * real_images(arrays)[:, :, None, None]
  pixels = np.rint((arrays['pixel_values'].transpose(0, 1, 3, 4, 2) / 2 + 0.5) * 255)
  sizes = [inside.any(3).sum(2), inside.any(2).sum(2)]
  return fields | {
    'images': np.where(inside[..., None], pixels, 0).astype(np.uint8),
    'image_size': np.stack(sizes, -1).astype(np.int32),
  }


def unpadded(array, arrays):
  """Values at the positions of text of a left-padded [B,T,...], row by row."""
  return [row[m.astype(bool)] for row, m in zip(array, arrays['attention_mask'])]


def text_positions(array, arrays):
  """The same of our right-padded array."""
  return [row[:n] for row, n in zip(np.asarray(array), arrays['attention_mask'].sum(1))]
