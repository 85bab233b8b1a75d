"""DPO at laptop size: captions against captions with objects that are not in the image.

    python -m sphinx_jax.train --config=mini_dpo --workdir=workdir/mini_dpo

It trains adapters beside stage 2 of the mini recipe, on pairs of a true caption and one with other
objects (datasets/miniworld_pairs.py). Run `bash launch/local.sh` first, or name the directory of
another finished recipe: `--config=mini_dpo:DIR`. With `mini_dpo:DIR,FILE.jsonl` the pairs are those
of a file: the model's own captions (benchmarks/own_pairs.py), which make it name fewer wrong
objects (docs/results.md).
"""

import os

from ml_collections import ConfigDict

from sphinx_jax.configs import forkme

RECIPE = 'workdir/mini'


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config of the training run.

  Args:
    arg: directory of a finished mini recipe, and with a comma before it a file of pairs.
  """
  recipe, _, file = arg.partition(',')
  recipe = recipe or RECIPE
  config = forkme.get_config(',,dpo').unlock()
  config.name = 'mini_dpo'
  config.init_from = os.path.join(recipe, 'stage2')
  config.data_dir = os.path.join(recipe, 'data')
  entry = dict(source='miniworld_pairs', task='caption', weight=1.0)
  own = dict(source='pairs', path=os.path.abspath(file), root='', task='dialog', weight=1.0)
  config.mixture = dict(caption=own if file else {**entry, 'split': 'train'})
  config.validation = dict(caption={**entry, 'split': 'validation'})
  config.batch.seq_len = 512  # Twice that of the recipe, for both answers of a pair.
  # With a beta of 0.1 the true captions became less likely, too (docs/results.md).
  config.preference.beta = 0.5 if file else 1.0
  config.optimizer.update(name='adamw', lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0)
  config.steps = 80 if file else 60
  config.eval_every, config.log_every = 20, 20
  config.checkpoint.every = 20
  return config.lock()
