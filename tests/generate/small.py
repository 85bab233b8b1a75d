"""A tiny model, tokenizer and template to generate with."""

import functools

import jax
import ml_collections
import numpy as np

from sphinx_jax.checkpoint import adapter_runs, store
from sphinx_jax.checkpoint.bundle import Bundle, load_bundle
from sphinx_jax.core import trees
from sphinx_jax.data import dialog, tokenizer as tokenizers
from sphinx_jax.generate.model import Model
from sphinx_jax.models import adapters, families
from tests.models import small as models

TEXTS = [
  'red circle',
  'blue square',
  'What is the color of the shape?',
  'Human: yes\n### Assistant: no',
  'one two three ###',
]

QUESTIONS = [
  'What is the color?',
  'one two three',
  'red',
  'What is the shape of the blue square, or of the circle?',
  'yes',
  'no',
]


@functools.cache
def tokenizer():
  return tokenizers.Tokenizer(tokenizers.train(TEXTS * 20, 320))


def config(**llm):
  sizes = dict(
    name='llama', vocab=320, width=32, layers=2, heads=2, kv_heads=2, multiple_of=16, max_length=256
  )
  encoders = dict(convnext=dict(view=16, input=16, depths=(1,), widths=(16,)))
  return models.light(encoders=encoders, llm=sizes | llm)


@functools.cache
def params():
  """Random weights, large enough for answers to differ between prompts and images."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32),
    families.abstract_params(config()),
  )


@functools.cache
def model(bucket=32):
  return Model(config(), params(), tokenizer(), dialog.Template('Be brief.'), bucket)


def save(folder, **settings):
  """Writes a checkpoint of the model, with more settings of its run; returns the folder."""
  carried = Bundle(
    ml_collections.ConfigDict({'model': config().to_dict()} | settings),
    tokenizer().model_bytes,
    {'system': 'Be brief.'},
  )
  with store.Store(folder) as saver:
    saver.save(7, params(), None, carried.to_meta())
  return folder


def save_adapter(folder, base, seed=0, rank=4, target='llm/layers/.*', whole=()):
  """Writes a run with adapters on the model, as if it was trained; returns the folder.

  `whole` are paths of parameters that were trained in full.
  """
  axes = families.logical_axes(config())
  ranks = adapters.ranks(adapters.matrices(axes), target, rank, ())
  shapes, _ = adapters.extend(families.abstract_params(config()), axes, ranks)
  leaves = adapters.fresh(shapes, dict.fromkeys(ranks, 2.0), jax.random.key(seed))
  rng = np.random.default_rng(seed)
  for path in leaves:
    if path.endswith(adapters.B):
      leaves[path] = rng.normal(0, 0.3, leaves[path].shape).astype(np.float32)
  leaves |= {path: trees.flatten(params())[path] + np.float32(seed + 1) for path in whole}
  carried = load_bundle(base)
  with carried.config.unlocked():
    carried.config.name = 'adapter'
    carried.config.lora = dict(
      rank=rank, alpha=2.0 * rank, target=target, ranks=(), rslora=False, dropout=0.1
    )
  with store.Store(folder) as saver:
    saver.save(3, trees.unflatten(leaves), None, {**carried.to_meta(), **adapter_runs.base(base)})
  return folder


def save_base_and_adapter(root):
  """Writes a checkpoint, and that of a run with adapters on it; returns both directories."""
  base = save(root / 'base', name='base', mixture={})
  return base, save_adapter(root / 'adapter', base)


def images(count):
  return list(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8))
