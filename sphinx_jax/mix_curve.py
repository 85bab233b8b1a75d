"""Measures mixes of two checkpoints along the line between them, and draws the curve:

    python -m sphinx_jax.mix_curve --inputs=REAL,SYNTHETIC --points=11 --tasks=vqa,rec --output=DIR

The mixes exist only in memory. Each is measured by its validation losses on the validation sets of
the run, and by its scores on --tasks. --output gets curve.json, curve.png and the answers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import run, settings
from sphinx_jax.checkpoint import merged, store as checkpoints
from sphinx_jax.checkpoint.bundle import Bundle, check_same_model
from sphinx_jax.core import cli, errors, files, paths
from sphinx_jax.data import dialog
from sphinx_jax.data.record import Source
from sphinx_jax.evaluation import held_out, predictions, weight_curve
from sphinx_jax.generate.model import Model
from sphinx_jax.models import families
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
  split: str = 'test',
  method: str = 'linear',
) -> list[dict[str, float]]:
  """Measures the line between two checkpoints and writes `curve.json`, `curve.png` and answers.

  Args:
    inputs: two checkpoints of one model and tokenizer.
    coefficients: shares of the first input.
    output: directory, made if absent. Answers that it already has are used again.
    config: config of a run with the validation sets. None means the config inside the first input.
    tasks: entries of the config's mixture to score as well (evaluation/held_out.py).
    examples: most questions per task.
    split: split of the tasks.
    method: how to mix, one of `METHODS`.

  Returns:
    The points of the curve, see `weight_curve.measure`. Scores are called 'task/NAME'.

  Raises:
    SphinxError: inputs or a config do not fit together, a task is unknown, or there is nothing to
      measure.
  """
  for directory in inputs:
    merged.check_whole(directory, 'curve, input')
  meta, other = (checkpoints.load_meta(directory) for directory in inputs)
  bundles = [Bundle.from_meta(meta, inputs[0]), Bundle.from_meta(other, inputs[1])]
  names = list(inputs)
  if config is not None:  # Its model computes with the weights of the inputs.
    names.append('--config')
    bundles.append(dataclasses.replace(bundles[0], config=config))
  check_same_model('curve', names, bundles)
  config = bundles[-1 if config else 0].config.copy_and_resolve_references()
  if 'mixture' not in config:
    raise errors.make(
      'curve',
      f"'{inputs[0]}' without the config of a training run",
      'a config with validation sets',
      'give --config',
    )
  settings.check_run(config)
  with config.unlocked():  # The checkpoint has the tokenizer. Its file may be gone.
    config.tokenizer, config.init_from = '', str(inputs[0])
    config.tokenizer_add = ()
  if tasks and hosts.process_count() > 1:
    raise errors.make(
      'curve',
      f'--tasks on {hosts.process_count()} processes',
      'one process, because one process decodes the answers',
      'leave --tasks out, or start a single process',
    )
  if not tasks and not config.validation:
    raise errors.make(
      'curve',
      'a config without validation sets, and no tasks',
      'something to measure',
      'give --config with `validation`, or --tasks',
    )
  if tasks:
    held_out.tasks_with_metric(config, tasks)
  sources = held_out.open_split(config, tasks, split)
  parents = run.open_parents(config, inputs)
  identity = (
    f'{method} of {inputs[0]} at step {meta["step"]} and {inputs[1]} at step {other["step"]}'
  )
  score = None
  if tasks:
    score = _task_scorer(config, parents.params[0], sources, examples, output, identity)
    weights_now = [checkpoints.identity(directory) for directory in inputs]
    hosts.on_process_0(
      lambda: predictions.claim_folder(
        output, {'curves': {identity: {'weights': weights_now}}}, extensible='curves'
      )
    )

  def evaluate(params: dict, share: float) -> dict[str, float]:
    values = parents.program.evaluate(params, parents.data.validation())
    if score is not None:
      values |= score(params, share)
    return values

  hosts.on_process_0(lambda: paths.make_folder(output, 'output'))
  stacked = families.stacked(config.model)
  points = weight_curve.measure(parents.params, coefficients, evaluate, method, stacked)
  if hosts.process_index() == 0:
    files.write_json(output / 'curve.json', points)
    figure = plots.line_between(points, [str(directory) for directory in inputs])
    files.write_atomic(output / 'curve.png', plots.to_png(figure))
  return points


def _task_scorer(
  config: ConfigDict,
  params: dict,
  sources: Mapping[str, Source],
  examples: int,
  output: epath.Path,
  identity: str,
) -> Callable[[dict, float], dict[str, float]]:
  """Returns a function (parameters, share) -> {'task/NAME': score}.

  All mixes are answered by one model, so that its programs are compiled once.

  Args:
    config: config of the run.
    params: any parameters of the model, on their devices.
    sources: {task: held-out records}.
    examples: most questions per task.
    output: directory of the curve.
    identity: text that names the parents and the method.
  """
  tokenizer = run.open_tokenizer(config)
  model = Model(config.model, params, tokenizer, dialog.Template(**config.dialog))
  train_sources = held_out.open_split(config, list(sources), 'train')
  mean_image = held_out.mean_image(train_sources, config.model.image_size, config.image.alpha)

  def score(mixed: dict, share: float) -> dict[str, float]:
    results = held_out.evaluate(
      model,
      sources,
      examples,
      mean_image,
      output / 'answers' / f'{share:g}',
      run=f'{share:g} of {identity}',
      params=mixed,
    )
    return {f'task/{task}': result['final'] for task, result in results.items()}

  return score


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
  if len(FLAGS.inputs) != 2:
    raise errors.make(
      '--inputs',
      ','.join(FLAGS.inputs),
      'two inputs',
      'measure the line between one pair per call',
    )
  facts = {name: FLAGS[name].value for name in ('inputs', 'coefficients', 'points')}
  output = epath.Path(FLAGS.output)
  with (
    hosts.session(facts),
    hosts.exclusive(output, 'output'),
    files.writing(output, 'output'),
  ):
    draw_curve(
      FLAGS.inputs,
      _shares(),
      output,
      config=FLAGS.config,
      tasks=FLAGS.tasks,
      examples=FLAGS.examples,
      split=FLAGS.split,
      method=FLAGS.method,
    )


if __name__ == '__main__':
  cli.define_config(optional=True)
  cli.define_paths('inputs', 'Directories of the two checkpoints.')
  flags.DEFINE_list(
    'coefficients', [], 'Shares of the first input to measure. Default: as many as --points.'
  )
  flags.DEFINE_integer(
    'points',
    11,
    'Number of mixes, evenly spaced from the second input to the first.',
    lower_bound=2,
    upper_bound=10_000,
  )
  flags.DEFINE_enum('method', 'linear', METHODS, 'How to mix the two inputs.')
  flags.DEFINE_list('tasks', [], "Tasks of the run's mixture to score as well.")
  flags.DEFINE_integer('examples', 100, 'Most questions per task.', lower_bound=1)
  flags.DEFINE_string('split', 'test', 'Split of the tasks.')
  cli.define_path('output', None, 'Directory of the curve.')
  cli.run(main)
