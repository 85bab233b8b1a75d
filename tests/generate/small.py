"""A tiny model, tokenizer and template to generate with."""

import base64
import functools

import jax
import ml_collections
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.core import config as config_lib
from sphinx_jax.data import dialog, tokenizer as tokenizers
from sphinx_jax.generate import decode
from sphinx_jax.models import sphinx

WORDS = [
  'red circle',
  'blue square',
  'What is the color of the shape?',
  'Human: yes\n### Assistant: no',
  'one two three ###',
]


@functools.cache
def tokenizer():
  return tokenizers.Tokenizer(tokenizers.train(WORDS * 20, 320))


def config(**llm):
  return ml_collections.ConfigDict(
    dict(
      image_size=16,
      grid=1,
      pool=1,
      half_round=False,
      dtype='float32',
      remat='none',
      scan_unroll=1,
      encoders=dict(convnext=dict(view=16, input=16, depths=(1,), widths=(16,))),
      llm=dict(
        name='llama',
        vocab=320,
        width=32,
        layers=2,
        heads=2,
        kv_heads=2,
        multiple_of=16,
        max_length=256,
      )
      | llm,
    )
  )


@functools.cache
def params():
  """Random weights, large enough for answers to differ between prompts and pictures."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), sphinx.abstract_params(config())
  )


@functools.cache
def generator(**options):
  return decode.Generator(
    config(),
    params(),
    tokenizer(),
    dialog.Template('Be brief.'),
    **{'rows': 4, 'bucket': 32} | options,
  )


def save(folder):
  """Writes a checkpoint of it and returns the folder."""
  meta = {
    'config': config_lib.to_json(ml_collections.ConfigDict({'model': config().to_dict()})),
    'tokenizer': base64.b64encode(tokenizer().model_bytes).decode(),
    'dialog': {'system': 'Be brief.'},
  }
  with store.Store(folder) as saver:
    saver.save(7, params(), None, meta)
  return folder


def pictures(count):
  return list(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8))
