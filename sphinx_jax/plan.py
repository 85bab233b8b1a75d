"""What a run needs of a slice that is not there: `python -m sphinx_jax.plan --config=configs/stage2.py:13b,1k --topology=v5p:4x4x4`.

Bytes on a device, the largest buffers, collectives, FLOP and a bound on time and MFU, without reading a weight or any data.
With libtpu (`pip install 'sphinx_jax[plan]'`; no TPU is needed) the very update that `train` runs is compiled for the slice;
without it, or with --nocompile, memory is estimated from shapes and layouts. `--search` ranks meshes, rows and remat
policies; `--topologies=all` prints README's table of the smallest slices.
"""

import importlib
import importlib.util
import pathlib

import jax
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax.core import accelerator, cli, errors
from sphinx_jax.core.progress import log
from sphinx_jax.planning import plan as plans, search as searching, sheet, slices, table
from sphinx_jax.run import Program, training_run

FLAGS = flags.FLAGS
STAGES, SIZES, SCALES = ('stage1', 'stage2'), ('7b', '13b'), ('224', '1k', '2k')


def have_compiler() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec('libtpu') is not None


def shipped() -> dict[str, ConfigDict]:
  """Label -> config of every training run on a pod that the project ships.

  Raises:
    SphinxError: not started from the project root, where configs/ is.
  """
  try:
    modules = {stage: importlib.import_module(f'configs.{stage}') for stage in STAGES}
  except ModuleNotFoundError as error:
    raise errors.make(
      '--topologies=all', 'no configs/ here', 'the project root', 'start from there'
    ) from error
  return {
    f'{stage}.py:{size},{scale}': modules[stage].get_config(f'{size},{scale}')
    for stage in STAGES
    for size in SIZES
    for scale in SCALES
  }


def main() -> None:
  jax.config.update(
    'jax_platforms', 'cpu'
  )  # Nothing is computed, and a TPU that is here is left alone.
  accelerator.quiet_libtpu()
  planner = plans.Planner(Program)
  compiler = FLAGS.compile and have_compiler()
  if FLAGS.compile and not compiler:
    log.info(
      'libtpu is not installed: estimates from shapes and layouts only, no compiled bytes, buffers or collectives'
    )
  if FLAGS.topologies:
    if FLAGS.topologies != 'all':
      raise errors.unknown('--topologies', FLAGS.topologies, ['all'])
    output = pathlib.Path(FLAGS.output) if FLAGS.output else None
    print(table.markdown(table.fill(shipped(), planner, output, compiler)))
    return
  if not FLAGS.config:
    raise errors.make(
      '--config',
      'nothing',
      'the config of one training run',
      'give --config=configs/stage2.py:13b,1k',
    )
  config = training_run(FLAGS.config, FLAGS.step)
  where = slices.find(FLAGS.topology)
  if FLAGS.search:
    print(
      sheet.ranked(
        searching.search(config, where, planner, FLAGS.compile_best if compiler else 0)[
          : FLAGS.rows
        ]
      )
    )
  else:
    print(sheet.text(planner.plan(config, where, compiler)))


if __name__ == '__main__':
  cli.define_config(optional=True)
  flags.DEFINE_string(
    'topology',
    'v5p:4x4x4',
    'The slice, as libtpu names it (v5p:4x4x4) or by accelerator type (v5p-128).',
  )
  flags.DEFINE_string('step', None, 'Which training run of a recipe.')
  flags.DEFINE_bool(
    'compile', True, 'Compiles for the slice, where libtpu is installed: minutes at full size.'
  )
  flags.DEFINE_bool('search', False, 'Ranks mesh shapes, rows of a batch and remat policies.')
  flags.DEFINE_integer('compile_best', 2, 'How many of the best layouts --search compiles.')
  flags.DEFINE_integer('rows', 20, 'Lines that --search prints.')
  flags.DEFINE_string(
    'topologies', None, "'all': README's table of the smallest slice for each shipped config."
  )
  flags.DEFINE_string(
    'output',
    None,
    'JSON file of the rows of --topologies; a table that was interrupted goes on from it.',
  )
  cli.run(main)
