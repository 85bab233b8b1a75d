"""Mixes the weights of checkpoints into a new one, as the paper mixes real and synthetic captions:

    python -m sphinx_jax.mix_weights --inputs=REAL,SYNTHETIC --coefficients=0.5,0.5 --output=DIR

`--rule='llm/layers/.*=0.7,0.3'` gives other coefficients to the parameters whose path matches; of several the first that
matches decides. `--base=DIR` makes it task arithmetic, base + sum of c_i * (input_i - base). `--method=slerp` turns the first
input to the second. Checkpoints of any size are mixed in at most 2 GiB of memory; directories may be gs:// URLs.

`--curve` writes no checkpoint: it measures mixes of two inputs on the validation sets of their run, and draws them:

    python -m sphinx_jax.mix_weights --curve --inputs=REAL,SYNTHETIC --points=11 --tasks=vqa,rec --output=DIR
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from sphinx_jax.checkpoint import mixing, store as checkpoints, stream
from sphinx_jax.core import cli, errors, memory, trees
from sphinx_jax.core.progress import log
from sphinx_jax.mix import weights
from sphinx_jax.parallel import hosts

FLAGS = flags.FLAGS
CARRIED = ('config', 'tokenizer', 'dialog')  # What inference needs, taken from the first parent.
DTYPES = ('float32', 'bfloat16', 'float16')


def mix_checkpoints(
  inputs: Sequence[checkpoints.Path],
  coefficients: weights.Coefficients,
  output: checkpoints.Path,
  unnormalized: bool = False,
  base: checkpoints.Path | None = None,
  method: str = 'linear',
  dtype: str | None = None,
) -> checkpoints.Path:
  """Writes the mix of several checkpoints; an output that already holds this very mix is left as it is.

  Args:
    inputs: directories of runs (their newest checkpoint) or single checkpoints.
    coefficients: one per input, or ordered rules `(pattern, numbers)`; see mix/weights.py.
    output: directory of the mixed checkpoint, like a run's.
    unnormalized: allows coefficients that do not sum to 1.
    base: the checkpoint that the inputs started from, for task arithmetic.
    method: 'linear' or 'slerp'.
    dtype: of the result's floating parameters, as numpy calls it; None: the first input's.

  Returns:
    The output directory.

  Raises:
    SphinxError: inputs that are no checkpoints, differ in leaves or tokenizer; coefficients that do not fit; an output that
      holds something else, or cannot be written.
  """
  rules = weights.as_rules(
    coefficients, len(inputs), unnormalized or base is not None, method, base is not None
  )
  places = [*inputs] if base is None else [*inputs, base]
  metas = [checkpoints.load_meta(directory) for directory in places]
  checkpoints.check_tokenizers('mix_weights', places, metas)
  parents = [
    {'directory': str(directory), 'step': meta['step']} for directory, meta in zip(places, metas)
  ]
  recipe = {
    'parents': parents[: len(inputs)],
    'coefficients': _plain(coefficients),
    'base': parents[len(inputs) :],
    'method': method,
    'dtype': dtype,
  }
  if _holds(output, recipe):
    log.info('%s: mixed before', output)
    return output
  arrays = [stream.read(directory, mapped=True) for directory in places]
  for directory, other in zip(places[1:], arrays[1:]):
    weights.check_alike(
      trees.unflatten(arrays[0]), trees.unflatten(other), f"input '{directory}'", f"'{places[0]}'"
    )
  numbers = {path: trees.first_match(rules, path) for path in arrays[0]}
  _write(
    arrays[: len(inputs)],
    arrays[-1] if base is not None else None,
    numbers,
    output,
    {name: metas[0].get(name) for name in CARRIED},
    recipe,
  )
  log.info(
    '%s: %s of %s%s',
    output,
    recipe['coefficients'],
    ', '.join(map(str, inputs)),
    f', from {base}' if base else '',
  )
  return output


def _write(
  parents: Sequence[mixing.Tree],
  base: mixing.Tree | None,
  numbers: mixing.Numbers,
  output: checkpoints.Path,
  carried: Mapping[str, Any],
  recipe: Mapping[str, Any],
) -> None:
  made = mixing.leaves([*parents, *([base] if base is not None else [])], recipe['dtype'])
  writer = stream.Writer(output, {'params': made}, {**carried, **recipe}, mixing.WRITING)
  try:
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      if recipe['method'] == 'slerp':
        numbers = mixing.angles(parents, numbers, made)
      hashes, written = mixing.stream_mix(parents, base, numbers, made, writer)
    known = [
      {**parent, 'hash': found}
      for parent, found in zip([*recipe['parents'], *recipe['base']], hashes)
    ]
    writer.finish(parents=known[: len(parents)], base=known[len(parents) :], hash=written)
  except BaseException:
    writer.abandon()
    raise


def _holds(output: checkpoints.Path, recipe: Mapping) -> bool:
  """Whether the output is this mix already."""
  if checkpoints.latest(output) is None:
    return False
  found = checkpoints.load_meta(output)
  for name in ('parents', 'base'):  # Their hashes are known after they are read.
    found[name] = [
      {key: value for key, value in each.items() if key != 'hash'} for each in found.get(name, [])
    ]
  if any(found.get(key) != value for key, value in recipe.items()):
    raise errors.make(
      f"mix_weights, output '{output}'",
      f'a checkpoint of {found["parents"] or "a training run"}',
      'a new directory',
      'give another --output',
    )
  return True


def _plain(coefficients: weights.Coefficients) -> list:
  """Coefficients as JSON gives them back."""
  return [
    item if isinstance(item, (int, float)) else [item[0], list(item[1])] for item in coefficients
  ]


def _numbers(items: Sequence[str], flag: str) -> tuple[float, ...]:
  try:
    return tuple(float(item) for item in items)
  except ValueError:
    raise errors.make(
      flag, ','.join(items), 'numbers separated by commas', 'for instance 0.5,0.5'
    ) from None


def _rules(texts: Sequence[str], default: tuple[float, ...]) -> list[tuple[str, tuple[float, ...]]]:
  rules = []
  for text in texts:
    pattern, sign, numbers = text.rpartition('=')
    if not sign:
      raise errors.make(
        '--rule', text, "'pattern=numbers'", "for instance --rule='llm/layers/.*=0.7,0.3'"
      )
    rules.append((pattern, _numbers(numbers.split(','), '--rule')))
  return [*rules, ('.*', default)]


def _curve() -> None:
  from sphinx_jax import mix_curve  # It brings the model and the data, which mixing does without.

  if len(FLAGS.inputs) != 2 or FLAGS.rule or FLAGS.base:
    raise errors.make(
      '--curve',
      ' '.join(
        [
          '--inputs=' + ','.join(FLAGS.inputs),
          *(f'--{name}' for name in ('rule', 'base') if FLAGS[name].value),
        ]
      ),
      'two inputs, without --rule and --base',
      'measure the line between two checkpoints',
    )
  shares = _numbers(FLAGS.coefficients, '--coefficients') or tuple(
    i / (FLAGS.points - 1) for i in range(FLAGS.points)
  )
  mix_curve.draw_curve(
    FLAGS.inputs,
    shares,
    epath.Path(FLAGS.output),
    config=FLAGS.config,
    tasks=FLAGS.tasks,
    examples=FLAGS.examples,
    split=FLAGS.split,
    method=FLAGS.method,
  )


def main() -> None:
  needed = ('inputs', 'output') if FLAGS.curve else ('inputs', 'coefficients', 'output')
  for name in needed:
    if not FLAGS[name].value:
      raise errors.make(
        f'--{name}',
        'nothing',
        'a value',
        'for instance --inputs=A,B --coefficients=0.5,0.5 --output=DIR',
      )
  if FLAGS.curve:
    with hosts.session(
      {'inputs': FLAGS.inputs, 'coefficients': FLAGS.coefficients, 'points': FLAGS.points}
    ):
      _curve()
    return
  memory.reuse()
  jax.config.update('jax_platforms', 'cpu')  # An accelerator would be taken away from others.
  coefficients = _numbers(FLAGS.coefficients, '--coefficients')
  mix_checkpoints(
    FLAGS.inputs,
    _rules(FLAGS.rule, coefficients) if FLAGS.rule else coefficients,
    FLAGS.output,
    FLAGS.unnormalized,
    FLAGS.base,
    FLAGS.method,
    FLAGS.dtype,
  )


if __name__ == '__main__':
  flags.DEFINE_list('inputs', [], 'Directories of the checkpoints to mix.')
  flags.DEFINE_list(
    'coefficients',
    [],
    'One number for each input; with --curve the shares of the first input to measure.',
  )
  flags.DEFINE_multi_string(
    'rule',
    [],
    "Coefficients for a part of the parameters, 'pattern=numbers'; can be repeated, the "
    'first that matches decides.',
  )
  flags.DEFINE_string(
    'base',
    None,
    'Checkpoint that the inputs started from: the result is base + sum of c * (input - base).',
  )
  flags.DEFINE_enum('method', 'linear', weights.METHODS, 'How parents become one; slerp takes two.')
  flags.DEFINE_enum('dtype', None, DTYPES, "Dtype of the result; the first input's if not given.")
  flags.DEFINE_string('output', None, 'Directory of the mixed checkpoint, or of the curve.')
  flags.DEFINE_bool('unnormalized', False, 'Allows coefficients that do not sum to 1.')
  flags.DEFINE_bool(
    'curve', False, 'Measures mixes of two inputs and draws them; writes no checkpoint.'
  )
  cli.define_config(optional=True)
  flags.DEFINE_integer(
    'points', 11, 'Of the curve, from the second input to the first.', lower_bound=2
  )
  flags.DEFINE_list('tasks', [], "Also scores these tasks of the run's mixture along the curve.")
  flags.DEFINE_integer('examples', 100, 'Most questions a task.', lower_bound=1)
  flags.DEFINE_string('split', 'test', 'Of the tasks that are scored.')
  cli.run(main)
