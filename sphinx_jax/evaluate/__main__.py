"""Scores a checkpoint: `python -m sphinx_jax.evaluate --checkpoint=DIR --output=DIR [--tasks=vqa,rec] [--examples=200]`.

The tasks are those of the checkpoint's own mixture, on another split; `tasks.py` says what is written.
"""

from absl import flags

from sphinx_jax.core import cli, errors
from sphinx_jax.evaluate import tasks
from sphinx_jax.generate import load

FLAGS = flags.FLAGS


def main() -> None:
  generator, meta, config = load.load(FLAGS.checkpoint, rows=FLAGS.rows)
  if 'mixture' not in config:
    raise errors.make(f"checkpoint '{FLAGS.checkpoint}'", 'converted weights, which carry no mixture of tasks', 'a run of ours',
                      'tune it on a mixture first')
  names = FLAGS.tasks or [name for name in config.mixture if name != 'text']
  held_out = tasks.open_split(config, names, FLAGS.split, FLAGS.data_dir)
  mean = tasks.mean_image(held_out, config.model.image_size)
  results = tasks.evaluate(generator, held_out, FLAGS.examples, mean, FLAGS.output, f'{FLAGS.checkpoint} at step {meta["step"]}')
  print('\n'.join(tasks.line(name, result) for name, result in results.items()))


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'Directory of a run or of one of its checkpoints.', required=True)
  flags.DEFINE_string('output', None, 'Folder for predictions and results.json.', required=True)
  flags.DEFINE_list('tasks', None, 'Names in the mixture of the checkpoint; left out: all but text.')
  flags.DEFINE_string('split', 'test', 'Split of the data.')
  flags.DEFINE_integer('examples', 200, 'Most questions a task.', lower_bound=1)
  flags.DEFINE_integer('rows', 128, 'Most prompts decoded together.', lower_bound=1)
  flags.DEFINE_string('data_dir', None, "Where the data is; left out: as in the checkpoint's config.")
  cli.run(main)
