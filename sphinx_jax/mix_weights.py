"""Mixes the weights of checkpoints into a new one, as the paper mixes real and synthetic captions:

    python -m sphinx_jax.mix_weights --inputs=REAL,SYNTHETIC --coefficients=0.5,0.5 --output=DIR

`--rule='llm/layers/.*=0.7,0.3'` gives other coefficients to the parameters whose path matches; the
first matching rule decides. `--base=DIR` switches to task arithmetic: base + sum of
c_i * (input_i - base). `--method=slerp` rotates the first input to the second. Checkpoints of any
size are mixed in at most 2 GiB of memory. Directories may be gs:// URLs.

`python -m sphinx_jax.mix_curve` measures mixes of two checkpoints without writing any.
"""

from collections.abc import Sequence

import jax
from absl import flags

from sphinx_jax.checkpoint import mixing
from sphinx_jax.core import cli, errors
from sphinx_jax.mix import weights

FLAGS = flags.FLAGS
DTYPES = ('float32', 'bfloat16', 'float16')


def _parse_numbers(texts: Sequence[str], flag: str) -> tuple[float, ...]:
  """Returns the numbers of a comma-separated flag; `flag` is its name for the error message."""
  try:
    return tuple(float(text) for text in texts)
  except ValueError:
    raise errors.make(
      flag, ','.join(texts), 'numbers separated by commas', 'for instance 0.5,0.5'
    ) from None


def _parse_rules(
  texts: Sequence[str], default: tuple[float, ...]
) -> list[tuple[str, tuple[float, ...]]]:
  """Returns the rules of `--rule` in order, and the default coefficients as the last rule."""
  rules = []
  for text in texts:
    pattern, equals, numbers = text.rpartition('=')
    if not equals:
      raise errors.make(
        '--rule', text, "'pattern=numbers'", "for instance --rule='llm/layers/.*=0.7,0.3'"
      )
    rules.append((pattern, _parse_numbers(numbers.split(','), '--rule')))
  return [*rules, ('.*', default)]


def main() -> None:
  for name in ('inputs', 'coefficients', 'output'):
    if not FLAGS[name].value:
      raise errors.make(
        f'--{name}',
        'nothing',
        'a value',
        'for instance --inputs=A,B --coefficients=0.5,0.5 --output=DIR',
      )
  jax.config.update('jax_platforms', 'cpu')  # Leaves the accelerator to other programs.
  coefficients = _parse_numbers(FLAGS.coefficients, '--coefficients')
  mixing.mix_checkpoints(
    FLAGS.inputs,
    _parse_rules(FLAGS.rule, coefficients) if FLAGS.rule else coefficients,
    FLAGS.output,
    unnormalized=FLAGS.unnormalized,
    base=FLAGS.base,
    method=FLAGS.method,
    dtype=FLAGS.dtype,
  )


if __name__ == '__main__':
  cli.define_paths('inputs', 'Directories of the checkpoints to mix, separated by commas.')
  flags.DEFINE_list('coefficients', [], 'One number for each input, separated by commas.')
  flags.DEFINE_multi_string(
    'rule',
    [],
    "Other coefficients for the parameters whose path matches, 'pattern=numbers'. Can be repeated; "
    'the first matching rule decides.',
  )
  cli.define_path(
    'base',
    None,
    'Checkpoint that the inputs started from: the result is base + sum of c * (input - base).',
  )
  flags.DEFINE_enum('method', 'linear', weights.METHODS, 'How to mix; slerp takes two inputs.')
  flags.DEFINE_enum('dtype', None, DTYPES, "Dtype of the result; by default the first input's.")
  cli.define_path('output', None, 'Directory of the mixed checkpoint.')
  flags.DEFINE_bool('unnormalized', False, 'Allow coefficients that do not sum to 1.')
  cli.run(main)
