"""CPU seconds of a stage without features, with new ones and with kept ones; are its numbers equal?

    python -m benchmarks.features --workdir=workdir/mini --config.stage2.steps=450

Trains one stage of a recipe three times (`config.cache_features`), each time from the start. The
data of the recipe in --workdir must be built. `--config.stage2.init_from=scratch` starts from
random weights.
"""

import pathlib
import tempfile
import time
from unittest import mock

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax import run, train
from sphinx_jax.checkpoint import store
from sphinx_jax.core import cli
from sphinx_jax.parallel import placement
from sphinx_jax.training import writer

FLAGS = flags.FLAGS


def run_config(cache_features: str) -> ConfigDict:
  """The stage as a separate run without validation, so that updates are all that it computes."""
  workdir = pathlib.Path(FLAGS.workdir)
  config = ConfigDict(run.training_run(FLAGS.config, FLAGS.stage, workdir).to_dict())
  if config.init_from == 'scratch':
    config.init_from = None
  config.update(validation={}, eval_every=0, log_every=10, cache_features=cache_features)
  config.checkpoint.every = config.steps
  return config.lock()


def seconds(config: ConfigDict, workdir: pathlib.Path) -> float:
  """CPU seconds from the first update to the last, of all threads. The first one compiles."""
  put, times = placement.put, []

  def noted(batch: dict, sharding: jax.sharding.Sharding) -> dict:
    if 'tokens' in batch:
      times.append(time.process_time())
    return put(batch, sharding)

  with mock.patch.object(placement, 'put', noted):
    train.train(config, workdir)
  return times[-1] - times[0]


def numbers(workdir: pathlib.Path) -> tuple[list[dict], list[np.ndarray]]:
  """The metrics of a run and its parameters."""
  lines = [
    {name: value for name, value in line.items() if name not in writer.MACHINE_METRICS}
    for line in writer.read(workdir)
  ]
  return lines, jax.tree.leaves(store.load_params(workdir))


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    directory = str(folder / 'features')
    for name, cache_features in (('pixels', ''), ('new', directory), ('kept', directory)):
      taken = seconds(run_config(cache_features), folder / name)
      lines, params = numbers(folder / name)
      expected_lines, expected = numbers(folder / 'pixels')
      equal = lines == expected_lines and all(map(np.array_equal, params, expected))
      print(f'{name:8} {taken:8.1f} CPU seconds; all numbers equal: {equal}', flush=True)


if __name__ == '__main__':
  cli.define_config('mini')
  flags.DEFINE_string('workdir', 'workdir/mini', 'Directory of a recipe whose data is built.')
  flags.DEFINE_string('stage', 'stage2', 'Section of the config that is one training run.')
  cli.run(main)
