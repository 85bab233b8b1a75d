"""Plans a run on a TPU slice that is not present.

    python -m sphinx_jax.plan --config=stage2:13b,1k --topology=v5p:4x4x4

Prints the bytes on a device, the largest buffers, collectives, FLOP, and a bound on time and MFU,
without reading a weight or any data. With libtpu (`pip install 'sphinx_jax[plan]'`; no TPU is
needed) the update that `train` runs is compiled for the slice. Without it, or with --nocompile,
memory is estimated from shapes and shardings. `--search` ranks meshes, batch sizes and remat
policies. `--topologies=all` prints the table of the smallest slices (docs/pods.md).

For one device the largest batch that fits is named, too: `--topology=v5e:1x1`, or `--memory=16GiB`
for any device of which the memory is known.
"""

import importlib.util
import pathlib

import jax
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax.configs import pod
from sphinx_jax.core import accelerator, cli, errors, paths
from sphinx_jax.core.progress import log
from sphinx_jax.planning import largest, search as searching, sheet, slices, smallest_slices
from sphinx_jax.planning.plan import Planner
from sphinx_jax.run import Program, training_run

FLAGS = flags.FLAGS


def have_compiler() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec('libtpu') is not None


def shipped() -> dict[str, ConfigDict]:
  """Returns label -> config of every training run for pods that the project ships."""
  return {
    f'{name}.py:{arg}': cli.load_config(f'{name}:{arg}')
    for name, arguments in pod.SHIPPED.items()
    for arg in arguments
  }


def main() -> None:
  """Prints the plan, the ranking or the table that the command line asks for."""
  jax.config.update('jax_platforms', 'cpu')  # Nothing is computed; a TPU of this host stays free.
  jax.config.update('jax_compilation_cache_dir', None)  # It cannot read programs of absent devices.
  accelerator.quiet_libtpu()
  compiler = FLAGS.compile and have_compiler()
  if FLAGS.compile and not compiler:
    log.info(
      'libtpu is not installed: estimates from shapes and shardings only, '
      'no compiled bytes, buffers or collectives'
    )
  planner = Planner(Program)

  if FLAGS.topologies:
    if FLAGS.topologies != 'all':
      raise errors.unknown('--topologies', FLAGS.topologies, ['all'])
    output = pathlib.Path(FLAGS.output) if FLAGS.output else None
    if output:
      paths.check_file(output)
    print(smallest_slices.markdown(smallest_slices.fill(shipped(), planner, output, compiler)))
    return

  if not FLAGS.config:
    raise errors.make(
      '--config',
      'nothing',
      'the config of one training run',
      'give --config=stage2:13b,1k',
    )
  config = training_run(FLAGS.config, FLAGS.step)
  if FLAGS.memory:
    if FLAGS.search or FLAGS['topology'].present:
      raise errors.make(
        '--memory',
        'beside --search or --topology',
        'it alone: nothing but the size of that device is known',
        'leave one of them out',
      )
    tpu_slice, compiler = slices.of_memory(FLAGS.memory), False
  else:
    tpu_slice = slices.find(FLAGS.topology)
  if FLAGS.search:
    compile_best = FLAGS.compile_best if compiler else 0
    plans = searching.search(config, tpu_slice, planner, compile_best)
    print(sheet.ranked(plans[: FLAGS.rows]))
  else:
    plan = planner.plan(config, tpu_slice, compile_it=compiler)
    rows = largest.rows(plan, planner) if tpu_slice.devices == 1 else None
    print(sheet.text(plan, rows))


if __name__ == '__main__':
  cli.define_config(optional=True)
  flags.DEFINE_string(
    'topology',
    'v5p:4x4x4',
    'The slice by its topology name (v5p:4x4x4) or its accelerator type (v5p-128).',
  )
  flags.DEFINE_string('memory', None, 'Instead of --topology: one device with 16GiB, 24GiB, ...')
  flags.DEFINE_string('step', None, 'Training run of a recipe.')
  flags.DEFINE_bool(
    'compile', True, 'Compile for the slice if libtpu is installed: minutes at full size.'
  )
  flags.DEFINE_bool('search', False, 'Rank mesh shapes, batch sizes and remat policies.')
  flags.DEFINE_integer(
    'compile_best', 2, 'Number of the best candidates that --search compiles.', lower_bound=0
  )
  flags.DEFINE_integer('rows', 20, 'Number of lines that --search prints.', lower_bound=1)
  flags.DEFINE_string(
    'topologies', None, "'all': print the table of the smallest slice for each shipped config."
  )
  cli.define_path(
    'output', None, 'JSON file of the rows of --topologies; an interrupted table resumes from it.'
  )
  cli.run(main)
