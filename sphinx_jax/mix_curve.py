"""Measures mixes of checkpoints without writing any, and draws what it finds.

The line between two checkpoints, the triangle between three, or, with --sensitivity, which
parameters want which input:

    python -m sphinx_jax.mix_curve --inputs=REAL,SYNTHETIC --points=11 --tasks=vqa,rec --output=DIR
    python -m sphinx_jax.mix_curve --inputs=A,B,C --points=6 --output=DIR
    python -m sphinx_jax.mix_curve --inputs=A,B --sensitivity --blocks=4 --output=DIR

The mixes exist only in memory. Each is measured by its validation losses on the validation sets of
the run, and by its scores on --tasks. --output gets curve.json and curve.png, or sensitivity.json
and sensitivity.png, and the answers. measured.jsonl keeps every measured mix: the same command goes
on where it was stopped, and more points measure only what is new.

For the sensitivity, the uniform mix is measured, and then mixes in which one group of parameters is
wholly from one input. Groups are derived from the model, with the layers of the language model in
--blocks; or --rule names them: --rule='llm/layers/.*@0-3' --rule='llm/.*'.
"""

import json
from collections.abc import Sequence

from absl import flags
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from sphinx_jax import mix_measure
from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.core import cli, errors, files, paths, text
from sphinx_jax.evaluation import predictions, weight_curve
from sphinx_jax.mix import groups, weights
from sphinx_jax.parallel import hosts
from sphinx_jax.report import plots

FLAGS = flags.FLAGS
METHODS = ('linear', 'slerp')  # Those of two inputs alone, without a base or statistics.


def draw_curve(
  inputs: Sequence[checkpoints.Path],
  coefficients: Sequence[float],
  output: epath.Path,
  config: ConfigDict | None = None,
  tasks: Sequence[str] = (),
  examples: int = 100,
  split: str | None = None,
  method: str = 'linear',
) -> list[dict[str, float]]:
  """Measures the line between two checkpoints and writes `curve.json`, `curve.png` and answers.

  Args:
    inputs: two checkpoints of one model and tokenizer.
    coefficients: shares of the first input.
    output: directory, made if absent. Answers that it already has are used again.
    config, tasks, split: as of `mix_measure.open_inputs`.
    examples: most questions per task.
    method: how to mix, one of `METHODS`.

  Returns:
    The points of the curve, see `weight_curve.measure`. Scores are called 'task/NAME'.

  Raises:
    SphinxError: as `mix_measure.open_inputs`.
  """
  opened = mix_measure.open_inputs('curve', inputs, config, tasks, split)
  rows = [(f'{share:g}', (share, 1 - share)) for share in coefficients]
  measured = _measure(opened, rows, output, examples, split, method)
  points = [{'coefficient': float(share), **row} for share, row in zip(coefficients, measured)]
  _write(output, 'curve', points, plots.line_between(points, [str(place) for place in inputs]))
  return points


def draw_triangle(
  inputs: Sequence[checkpoints.Path],
  side: int,
  output: epath.Path,
  config: ConfigDict | None = None,
  tasks: Sequence[str] = (),
  examples: int = 100,
  split: str | None = None,
) -> list[dict]:
  """Measures the triangle between three checkpoints, and writes the same files as `draw_curve`.

  Args:
    inputs: three checkpoints of one model and tokenizer.
    side: number of mixes on a side; side * (side + 1) / 2 are measured.
    output, config, tasks, examples, split: as of `draw_curve`.

  Returns:
    One dictionary per mix: 'coefficients' (three numbers), losses, and scores 'task/NAME'.

  Raises:
    SphinxError: as `mix_measure.open_inputs`.
  """
  opened = mix_measure.open_inputs('curve', inputs, config, tasks, split)
  rows = [(','.join(f'{c:g}' for c in row), row) for row in weight_curve.triangle(side)]
  measured = _measure(opened, rows, output, examples, split)
  points = [{'coefficients': list(row), **values} for (_, row), values in zip(rows, measured)]
  _write(output, 'curve', points, plots.triangle_between(points, [str(place) for place in inputs]))
  return points


def draw_sensitivity(
  inputs: Sequence[checkpoints.Path],
  output: epath.Path,
  patterns: Sequence[str] = (),
  blocks: int = 4,
  config: ConfigDict | None = None,
  tasks: Sequence[str] = (),
  examples: int = 100,
  split: str | None = None,
) -> dict:
  """Moves one group of parameters at a time from the uniform mix to each input.

  Writes `sensitivity.json`, `sensitivity.png` and answers.

  Args:
    inputs: two or more checkpoints of one model and tokenizer.
    output, config, tasks, examples, split: as of `draw_curve`.
    patterns: groups in the order in which they decide; the rest becomes one more. Without any, they
      are those of the model (mix/groups.py). Equal parameters of all inputs are in no group.
    blocks: number of blocks of layers of the language model among the groups of the model.

  Returns:
    Content of the file: 'inputs'; 'uniform', losses and scores of the uniform mix; 'groups', for
    each group and input a dictionary of 'group' (pattern), 'parameters' (number of those in which
    the inputs differ), 'input' (number from 0), 'values' of the mix in which the group is wholly
    from this input, and 'change', the values less those of the uniform mix.

  Raises:
    SphinxError: as `mix_measure.open_inputs`, or a pattern has no parameters.
  """
  opened = mix_measure.open_inputs('sensitivity', inputs, config, tasks, split)
  if patterns:
    names = groups.complete(patterns, opened.leaves, opened.stacks)
  else:
    names = groups.of_model(opened.leaves, opened.stacks, blocks)
  sizes = groups.sizes(names, opened.leaves, opened.stacks)
  moved = weight_curve.moved(names, len(inputs))
  uniform = (1 / len(inputs),) * len(inputs)
  mixes: list[tuple[str, weights.Coefficients]] = [('uniform', uniform)]
  mixes += [(f'{names.index(group)}-{number}', rules) for group, number, rules in moved]
  base, *measured = _measure(opened, mixes, output, examples, split)
  result = {
    'inputs': [str(place) for place in inputs],
    'uniform': base,
    'groups': [
      {
        'group': group,
        'parameters': sizes[group],
        'input': number,
        'values': values,
        'change': {name: value - base[name] for name, value in values.items()},
      }
      for (group, number, _), values in zip(moved, measured)
    ],
  }
  _write(output, 'sensitivity', result, plots.sensitivity(result))
  return result


def _measure(
  opened: mix_measure.Inputs,
  mixes: Sequence[tuple[str, weights.Coefficients]],
  output: epath.Path,
  examples: int,
  split: str | None,
  method: str = 'linear',
) -> list[dict[str, float]]:
  """Returns losses and scores of mixes: (name of the folder of answers, coefficients)."""
  identity = f'{method} of {" and ".join(opened.names)}'
  score = None
  if opened.sources:
    score = mix_measure.scorer(opened, examples, output / 'answers', identity)
    run = {'curves': {identity: {'weights': list(opened.identities)}}}
    hosts.on_process_0(lambda: predictions.claim_folder(output, run, extensible='curves'))
  hosts.on_process_0(lambda: paths.make_folder(output, 'output'))
  kept = mix_measure.Measured(output / 'measured.jsonl')
  data = text.digest(json.dumps(opened.identity(examples, split), sort_keys=True))

  def value(mix: tuple[str, weights.Coefficients]) -> dict[str, float]:
    name, coefficients = mix

    def measure() -> dict[str, float]:
      params = opened.mix(coefficients, method)
      values = opened.parents.program.evaluate(params, opened.parents.data.validation())
      if score is not None:
        values |= score(params, opened.sources, name)
      return values

    # `data` is of the inputs, too.
    key = {'data': data, 'method': method, 'coefficients': weights.as_json(coefficients)}
    return kept.values(key, measure)

  return weight_curve.measure_each(mixes, value)


def _write(output: epath.Path, name: str, values: object, figure: Figure) -> None:
  """Writes NAME.json and NAME.png on process 0."""
  if hosts.process_index() == 0:
    files.write_json(output / f'{name}.json', values)
    files.write_atomic(output / f'{name}.png', plots.to_png(figure))


def _shares() -> tuple[float, ...]:
  """Returns the shares of the first input that the flags name."""
  if not FLAGS.coefficients:
    return tuple(i / (FLAGS.points - 1) for i in range(FLAGS.points))
  try:
    return tuple(float(item) for item in FLAGS.coefficients)
  except ValueError:
    raise errors.make(
      '--coefficients',
      ','.join(FLAGS.coefficients),
      'numbers separated by commas',
      'for example --coefficients=0,0.5,1',
    ) from None


def main() -> None:
  """Draws the curve that the flags of the command line name."""
  for name in ('inputs', 'output'):
    if not FLAGS[name].value:
      raise errors.make(
        f'--{name}', 'nothing', 'a value', 'for example --inputs=REAL,SYNTHETIC --output=DIR'
      )
  _check_flags()
  facts = {
    name: FLAGS[name].value
    for name in ('inputs', 'coefficients', 'points', 'sensitivity', 'rule', 'blocks')
  }
  output = epath.Path(FLAGS.output)
  options = {name: FLAGS[name].value for name in ('config', 'tasks', 'examples', 'split')}
  with (
    hosts.session(facts),
    hosts.exclusive(output, 'output'),
    files.writing(output, 'output'),
  ):
    if FLAGS.sensitivity:
      draw_sensitivity(FLAGS.inputs, output, FLAGS.rule, FLAGS.blocks, **options)
    elif len(FLAGS.inputs) == 3:
      draw_triangle(FLAGS.inputs, FLAGS.points, output, **options)
    else:
      draw_curve(FLAGS.inputs, _shares(), output, **options, method=FLAGS.method)


def _check_flags() -> None:
  """Checks that every flag has an effect, and that so many inputs can be drawn.

  Raises:
    SphinxError: one has none, or there are too few or too many inputs.
  """
  count = len(FLAGS.inputs)
  if count < 2 or (count > 3 and not FLAGS.sensitivity):
    raise errors.make(
      '--inputs',
      f'{count} inputs',
      'two for a line, or three for a triangle',
      'for more, --sensitivity, or python -m sphinx_jax.mix_weights --method=search',
    )
  if FLAGS.sensitivity:
    what, without = '--sensitivity', ('coefficients', 'points', 'method')
  elif count == 3:
    what, without = 'three inputs', ('coefficients', 'method', 'rule', 'blocks')
  else:
    what, without = 'a line', ('rule', 'blocks')
  for name in without:
    if FLAGS[name].value != FLAGS[name].default:
      raise errors.make(
        f'--{name}', f'{FLAGS[name].value} with {what}', 'none: it has no effect', 'leave it out'
      )


if __name__ == '__main__':
  cli.define_config(optional=True)
  cli.define_paths(
    'inputs', 'Directories of two or three checkpoints; with --sensitivity, or more.'
  )
  flags.DEFINE_list(
    'coefficients', [], 'Shares of the first input to measure. Default: as many as --points.'
  )
  flags.DEFINE_integer(
    'points',
    11,
    'Number of evenly spaced mixes between two inputs, or on each side of a triangle.',
    lower_bound=2,
    upper_bound=10_000,
  )
  flags.DEFINE_bool(
    'sensitivity', False, 'Measure which groups of parameters want which input, from the middle.'
  )
  flags.DEFINE_multi_string(
    'rule', [], 'Pattern of a group for --sensitivity. Can be repeated; the first match decides.'
  )
  flags.DEFINE_integer(
    'blocks', 4, 'Blocks of layers of the language model for --sensitivity.', lower_bound=1
  )
  flags.DEFINE_enum('method', 'linear', METHODS, 'How to mix two inputs.')
  flags.DEFINE_list('tasks', [], "Tasks of the run's mixture to score as well.")
  flags.DEFINE_integer('examples', 100, 'Most questions per task.', lower_bound=1)
  flags.DEFINE_string(
    'split', None, "Split of the tasks. None: the run's validation sets, or else 'test'."
  )
  cli.define_path('output', None, 'Directory of the curve.')
  cli.run(main)
