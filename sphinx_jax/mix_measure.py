"""Checkpoints opened to be mixed in memory; losses and scores of their mixes, kept in a file.

The entry points mix_curve and mix_weights share this file.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import run
from sphinx_jax.checkpoint import merged, store as checkpoints
from sphinx_jax.checkpoint.bundle import Bundle, check_same_model
from sphinx_jax.core import errors, files, trees
from sphinx_jax.core.progress import log
from sphinx_jax.data import dialog
from sphinx_jax.data.record import Source
from sphinx_jax.evaluation import held_out
from sphinx_jax.generate.model import Model
from sphinx_jax.mix import weights
from sphinx_jax.models import families
from sphinx_jax.parallel import hosts

# (parameters, held-out records, name of the mix) -> {'task/NAME': score}.
Scorer = Callable[[dict, Mapping[str, Source], str], dict[str, float]]


class Inputs(NamedTuple):
  """Checkpoints to mix in memory, and what measures the mixes.

  Attributes:
    directories: of the checkpoints.
    names: directory and step of each, as text.
    identities: what changes if other weights take their places.
    config: config of the run with the validation sets.
    parents: see `run.Parents`.
    sources: {task: held-out records}.
    stacked: path -> number of leading axes along which tensors are stacked.
    leaves: path -> number of parameters, of the leaves in which the inputs differ.
    stacks: path -> number of layers, of those of them that are stacks.
  """

  directories: tuple[checkpoints.Path, ...]
  names: tuple[str, ...]
  identities: tuple[str, ...]
  config: ConfigDict
  parents: run.Parents
  sources: dict[str, Source]
  stacked: dict[str, int]
  leaves: dict[str, int]
  stacks: dict[str, int]

  def mix(self, coefficients: weights.Coefficients, method: str = 'linear') -> dict:
    """Returns a mix as parameters on the devices, see `weights.mix`."""
    return weights.mix(self.parents.params, coefficients, method=method, stacked=self.stacked)

  def identity(self, examples: int, split: str | None) -> dict[str, Any]:
    """Returns what changes if a mix would have other losses or scores, as plain JSON.

    Args:
      examples: most questions per task.
      split: split of the tasks, see `held_out.open_split`.
    """
    return {
      'inputs': list(self.identities),
      'tasks': [*self.sources],
      'split': split,
      'examples': examples,
      'validation': self.config.validation.to_dict(),
      'eval_batches': self.config.eval_batches,
      'batch': self.config.batch.to_dict(),
      'files': dict(self.parents.data.files),
    }


class Measured:
  """Losses and scores of mixes in a file, so that no mix is measured again after a restart.

  Args:
    file: JSON lines, made with the first mix.
  """

  def __init__(self, file: epath.Path) -> None:
    self._file = file
    lines = files.read_jsonl(file) if file.exists() else []
    self._lines: list[dict[str, Any]] = hosts.broadcast(lines)
    if self._lines:
      log.info("%d mixes were measured before: '%s'", len(self._lines), file)

  def values(
    self, key: Mapping[str, Any], measure: Callable[[], dict[str, float]]
  ) -> dict[str, float]:
    """Returns losses and scores by name, from the file or else from `measure`.

    Args:
      key: identifies the mix and its data, as plain JSON.
      measure: measures them.
    """
    for line in self._lines:
      if key.items() <= line.items():
        return line['values']
    values = measure()
    self._lines.append({**key, 'values': values})
    # The whole file: a line is never cut, and an object in a bucket cannot grow.
    lines = ''.join(f'{json.dumps(line)}\n' for line in self._lines)
    hosts.on_process_0(lambda: files.write_atomic(self._file, lines))
    return values


def open_inputs(
  who: str,
  directories: Sequence[checkpoints.Path],
  config: ConfigDict | None = None,
  tasks: Sequence[str] = (),
  split: str | None = None,
) -> Inputs:
  """Opens checkpoints, validation sets and tasks.

  Args:
    who: the command, for messages.
    directories: checkpoints of one model and tokenizer.
    config: config of a run with the validation sets. None means the config inside the first input.
    tasks: entries of the config's mixture to score as well (evaluation/held_out.py).
    split: split of the tasks, see `held_out.open_split`.

  Raises:
    SphinxError: inputs or a config do not fit together, a task is unknown, or there is nothing to
      measure.
  """
  for directory in directories:
    merged.check_whole(directory, f'{who}, input')
  metas = [checkpoints.load_meta(directory) for directory in directories]
  bundles = [Bundle.from_meta(meta, directory) for meta, directory in zip(metas, directories)]
  check_same_model(who, directories, bundles)
  config = run.config_for(who, directories[0], bundles[0], config)
  if tasks and hosts.process_count() > 1:
    raise errors.make(
      who,
      f'--tasks on {hosts.process_count()} processes',
      'one process, because one process decodes the answers',
      'leave --tasks out, or start a single process',
    )
  if not tasks and not config.validation:
    raise errors.make(
      who,
      'a config without validation sets, and no tasks',
      'something to measure',
      'give --config with `validation`, or --tasks',
    )
  if tasks:
    held_out.tasks_with_metric(config, tasks)
  sources = held_out.open_split(config, tasks, split)
  parents = run.open_parents(config, directories)
  leaves, stacked = _differing(parents.params), families.stacked(config.model)
  if not leaves:
    raise errors.make(who, 'inputs of equal weights', 'others', 'check --inputs')
  return Inputs(
    directories=tuple(directories),
    names=tuple(f'{place} at step {meta["step"]}' for place, meta in zip(directories, metas)),
    identities=tuple(map(checkpoints.identity_of, metas)),
    config=config,
    parents=parents,
    sources=sources,
    stacked=stacked,
    leaves={path: math.prod(leaf.shape) for path, leaf in leaves.items()},
    stacks=weights.count_layers(leaves, stacked),
  )


def _differing(parents: Sequence[dict]) -> dict[str, jax.Array]:
  """Path -> leaf of the first tree, of the leaves in which a tree differs."""
  first, *others = map(trees.flatten, parents)
  equal = {path: [_all_equal(leaf, tree[path]) for tree in others] for path, leaf in first.items()}
  return {path: leaf for path, leaf in first.items() if not all(equal[path])}


@jax.jit
def _all_equal(first: jax.Array, second: jax.Array) -> jax.Array:
  return (first == second).all()


def scorer(inputs: Inputs, examples: int, folder: epath.Path, identity: str) -> Scorer:
  """Returns what scores a mix on tasks.

  All mixes are answered by one model, so that its programs are compiled once.

  Args:
    inputs: with at least one task.
    examples: most questions per task.
    folder: gets the answers, in a folder for each mix.
    identity: text that names the inputs and the method.
  """
  config = inputs.config
  tokenizer = run.open_tokenizer(config)
  model = Model(config.model, inputs.parents.params[0], tokenizer, dialog.Template(**config.dialog))

  def score(params: dict, sources: Mapping[str, Source], name: str) -> dict[str, float]:
    scores = held_out.score(
      model, sources, examples, folder / name, run=f'{name} of {identity}', params=params
    )
    return {f'task/{task}': value for task, value in scores.items()}

  return score
