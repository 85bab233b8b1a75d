"""Makes a mixture of experts of dense checkpoints, to train on:

    python -m sphinx_jax.upcycle --inputs=DENSE --experts=8 --output=DIR
    python -m sphinx_jax.upcycle --inputs=CHARTS,PHOTOS,TEXT,CODE --experts=4 --output=DIR

Of one input, every expert is a copy of its feed-forward layers, and the mixture computes what the
input computes (sparse upcycling). Of several fine-tunes of one model, they become the experts, and
all other parameters are their mean (branch-train-mix). The routers are new and small: train the
result, for example with --config=forkme:FILE,DIR.
"""

from absl import flags

from sphinx_jax.checkpoint import upcycled
from sphinx_jax.core import cli, errors

FLAGS = flags.FLAGS


def main() -> None:
  """Writes the mixture that the command line describes."""
  for name in ('inputs', 'output'):
    if not FLAGS[name].value:
      raise errors.make(
        f'--{name}', 'nothing', 'a value', 'for instance --inputs=DENSE --output=DIR'
      )
  upcycled.upcycle(FLAGS.inputs, FLAGS.output, FLAGS.experts, FLAGS.per_token, FLAGS.seed)


if __name__ == '__main__':
  cli.define_paths('inputs', 'Dense checkpoints of one model, separated by commas.')
  flags.DEFINE_integer('experts', 8, 'Experts of a layer.', lower_bound=1)
  flags.DEFINE_integer('per_token', 2, 'Experts that compute a token.', lower_bound=1)
  cli.define_seed('Random seed of the routers.')
  cli.define_path('output', None, 'Directory to create.')
  cli.run(main)
