"""Tests whether training makes a model use the image.

    python -m benchmarks.look --workdir=workdir/mini --stage=stage2 --config.stage2.steps=500

Trains one stage of a recipe, then prints the held-out loss with the true image and with another
image. A model that ignores the image has the same loss with both, long before its scores show it.
The data of the recipe in --workdir must be built. `--config.stage2.init_from=scratch` starts from
random weights.
"""

import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax import run, train
from sphinx_jax.checkpoint import store
from sphinx_jax.core import cli

FLAGS = flags.FLAGS


def run_config() -> ConfigDict:
  """The stage as a separate run that validates on every task with an image."""
  workdir = pathlib.Path(FLAGS.workdir)
  config = ConfigDict(run.training_run(FLAGS.config, FLAGS.stage, workdir).to_dict())
  if config.init_from == 'scratch':
    config.init_from = None
  config.validation = {
    task: entry.to_dict() | {'split': 'validation'}
    for task, entry in config.mixture.items()
    if task != 'text'
  }
  return config.lock()


def with_other_images(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The batch with every row's images replaced by those of the row before."""
  return {**batch, 'images': np.roll(batch['images'], 1, axis=0)}


def main() -> None:
  config = run_config()
  with tempfile.TemporaryDirectory() as workdir:
    last = train.train(config, workdir)
    program = run.Program(config)
    params = store.load_params(workdir, program.params)
  other = {
    task: [with_other_images(batch) for batch in batches]
    for task, batches in run.open_data(config).validation().items()
  }
  print(f'{config.steps} updates, {last["examples_per_second"]:.0f} examples a second')
  for task, loss in program.evaluate(params, other).items():
    print(f'{task:20} {last[f"validation/{task}"]:.3f} true image   {loss:.3f} another image')


if __name__ == '__main__':
  cli.define_config('mini')
  flags.DEFINE_string('workdir', 'workdir/mini', 'Directory of a recipe whose data is built.')
  flags.DEFINE_string('stage', 'stage2', 'Section of the config that is one training run.')
  cli.run(main)
