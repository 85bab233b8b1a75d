"""The line between two checkpoints: validation losses, and scores of tasks, of mixes that are made in memory only.

The recipe's `mix` step chooses its coefficient with it, and `mix_weights --curve` draws it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import run
from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import dialog
from sphinx_jax.evaluation import held_out as evaluation
from sphinx_jax.generate.model import Model
from sphinx_jax.mix import weights
from sphinx_jax.parallel import hosts
from sphinx_jax.report import plots
from sphinx_jax.run import Program


class Line(NamedTuple):
  """Two parents on their devices, and what measures them.

  Attributes:
    program: of the config.
    data: of the config, its validation sets included.
    parents: two parameter trees.
  """

  program: Program
  data: run.Data
  parents: tuple[dict, dict]


def open_line(config: ConfigDict, inputs: Sequence[checkpoints.Path]) -> Line:
  """Opens validation sets and loads the parents onto the config's mesh.

  Raises:
    SphinxError: data, mesh or checkpoints that do not fit the config.
  """
  program = Program(config)
  data = run.open_data(config, hosts.local_rows(program.batch_sharding, config.batch.size))
  for directory in inputs:
    checkpoints.check(directory, program.params)
  return Line(
    program, data, tuple(checkpoints.load_params(directory, program.params) for directory in inputs)
  )


def curve(
  parents: Sequence[Mapping],
  coefficients: Sequence[float],
  evaluate: Callable[[dict, float], Mapping[str, float]],
  method: str = 'linear',
) -> list[dict[str, float]]:
  """Measures mixes that are made in memory only, where and as sharded as the parents are.

  Args:
    parents: two parameter trees on their devices.
    coefficients: shares b of the first tree; the mix is b * first + (1 - b) * second, or their slerp.
    evaluate: (parameters, share) -> name -> value (validation losses, say).
    method: of mixing.

  Returns:
    One dictionary per coefficient: `coefficient` and what `evaluate` gave.
  """
  points = []
  with Progress(total=len(coefficients), what='weight mixes', unit='mix') as bar:
    for share in coefficients:
      values = evaluate(weights.mix(parents, (share, 1 - share), method=method), share)
      points.append({'coefficient': float(share), **values})
      bar.update(note=' '.join(f'{name} {value:.4f}' for name, value in values.items()))
  return points


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
  """Measures the line and writes `curve.json`, `curve.png` and what was answered; no checkpoint.

  Args:
    inputs: two checkpoints of one model and tokenizer.
    coefficients: shares of the first.
    output: directory; made if absent. Answers that are there already are not asked for again.
    config: of a run with the validation sets; None: that inside the first input.
    tasks: entries of the config's mixture to score as well, by `evaluate.tasks`.
    examples: most questions a task.
    split: of the tasks.
    method: of mixing.

  Returns:
    As `curve`; scores are called `task/NAME`.

  Raises:
    SphinxError: inputs or a config that do not fit together, an unknown task, nothing to measure.
  """
  meta, other = (checkpoints.load_meta(directory) for directory in inputs)
  checkpoints.check_tokenizers('curve', inputs, (meta, other))
  config = (config or config_lib.from_json(meta['config'])).copy_and_resolve_references()
  if 'mixture' not in config:
    raise errors.make(
      'curve',
      f"no run's config inside '{inputs[0]}' (it is not from a training run)",
      'the config of a run, with validation sets',
      'give --config',
    )
  with config.unlocked():  # Wherever the tokenizer's file was: the checkpoint has it.
    config.tokenizer, config.init_from = '', str(inputs[0])
  if tasks and hosts.process_count() > 1:
    raise errors.make(
      'curve',
      f'--tasks on {hosts.process_count()} hosts',
      'one host, as answers are decoded on one',
      'leave --tasks out, or start it on one host',
    )
  if not tasks and not config.validation:
    raise errors.make(
      'curve',
      'a config without validation sets, and no tasks',
      'something to measure',
      'give --config with `validation`, or --tasks',
    )
  asked = evaluation.open_split(config, tasks, split)
  line = open_line(config, inputs)
  name = f'{method} of {inputs[0]} at step {meta["step"]} and {inputs[1]} at step {other["step"]}'
  score = _scorer(config, line, asked, examples, output, name) if tasks else None

  def evaluate(params: dict, share: float) -> dict[str, float]:
    return line.program.evaluate(params, line.data.validation) | (
      score(params, share) if tasks else {}
    )

  hosts.on_process_0(lambda: output.mkdir(parents=True, exist_ok=True))
  points = curve(line.parents, coefficients, evaluate, method)
  if hosts.process_index() == 0:
    (output / 'curve.json').write_text(json.dumps(points, indent=2))
    (output / 'curve.png').write_bytes(
      plots.to_png(plots.line_between(points, [str(directory) for directory in inputs]))
    )
  return points


def _scorer(
  config: ConfigDict, line: Line, asked: Mapping, examples: int, output: epath.Path, name: str
) -> Callable[[dict, float], dict[str, float]]:
  """(parameters, share) -> `task/NAME` -> score; one model, so that its programs are compiled once."""
  model = Model(
    config.model,
    line.parents[0],
    run.open_tokenizer(config),
    dialog.Template(config.dialog.system),
  )
  mean = evaluation.mean_image(
    evaluation.open_split(config, list(asked), 'train'), config.model.image_size
  )

  def score(params: dict, share: float) -> dict[str, float]:
    results = evaluation.evaluate(
      model,
      asked,
      examples,
      mean,
      output / 'answers' / f'{share:g}',
      run=f'{share:g} of {name}',
      params=params,
    )
    return {f'task/{task}': result['final'] for task, result in results.items()}

  return score
