"""Chooses the coefficients of a mix by held-out data: greedy soup and search, for mix_weights.

One half of the data chooses: the mean of the validation losses, or with tasks, the mean of their
scores. The other half reports: each input alone, the uniform mix and the chosen one. The folder
`choice` in the output gets `evaluations.jsonl` (every measured mix, which is never measured again),
`choice.json` and the answers.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import mix_measure
from sphinx_jax.checkpoint import mixing, store as checkpoints
from sphinx_jax.core import errors, files, text as text_lib
from sphinx_jax.core.progress import log
from sphinx_jax.evaluation import halves, predictions
from sphinx_jax.mix import groups, search, soup, weights
from sphinx_jax.parallel import hosts

FOLDER = 'choice'


def mix_chosen(
  method: str,
  inputs: Sequence[checkpoints.Path],
  output: checkpoints.Path,
  patterns: Sequence[str] = (),
  config: ConfigDict | None = None,
  tasks: Sequence[str] = (),
  examples: int = 100,
  split: str = 'validation',
  evaluations: int = 50,
  seed: int = 0,
  dtype: str | None = None,
) -> dict[str, Any]:
  """Chooses coefficients, prints what they are worth, and writes the mix as a checkpoint.

  Args:
    method: 'greedy_soup' or 'search'.
    inputs: two or more checkpoints of one model and tokenizer.
    output: directory of the mixed checkpoint.
    patterns: groups of parameters that get coefficients of their own in a search, in the order in
      which they decide; the rest becomes one more.
    config, tasks, split: as of `mix_measure.open_inputs`.
    examples: most questions per task in each half.
    evaluations: most mixes that a search measures.
    seed: of the search.
    dtype: as of `mixing.mix_checkpoints`.

  Returns:
    What the meta of the mix records as 'choice'.

  Raises:
    SphinxError: as `mix_measure.open_inputs` and `mixing.mix_checkpoints`; a half of the validation
      data has no batch, or the output holds another checkpoint.
  """
  output = checkpoints.absolute_path(output)
  mixing.check_output(output, inputs)
  record: dict[str, Any] = {'method': method, 'tasks': list(tasks), 'split': split}
  if method == 'search':
    record |= {'groups': list(patterns), 'evaluations': evaluations, 'seed': seed}
  _check_output(output, record)
  opened = mix_measure.open_inputs('mix_weights', inputs, config, tasks, split)
  with hosts.exclusive(output / FOLDER, 'output'):
    measured = Evaluations(opened, output / FOLDER, examples, split)
    chosen = _choose(opened, measured, record)
    record |= {'measure': measured.what, **_compare(measured, chosen, len(inputs))}
    hosts.on_process_0(lambda: files.write_json(output / FOLDER / 'choice.json', record))
  hosts.on_process_0(
    lambda: mixing.mix_checkpoints(inputs, chosen, output, dtype=dtype, choice=record)
  )
  if hosts.process_index() == 0:
    print(_text(chosen, record))
  return record


def _check_output(output: epath.Path, record: Mapping[str, Any]) -> None:
  """Refuses an output with another checkpoint before the work, not after it.

  Raises:
    SphinxError: it has one.
  """
  if checkpoints.latest(output) is None:
    return
  stored = checkpoints.load_meta(output).get('choice') or {}
  different = [key for key, value in record.items() if stored.get(key) != value]
  if different:
    raise errors.make(
      f"output '{output}'",
      'a mix that was chosen with other settings ' + f'({", ".join(different)})'
      if stored
      else 'a checkpoint that no held-out data chose',
      'a new directory, or the same settings',
      f'give another --output, or remove its {checkpoints.FOLDER}: measured mixes stay',
    )


def _choose(
  opened: mix_measure.Inputs, measured: 'Evaluations', record: Mapping[str, Any]
) -> weights.Coefficients:
  """Returns the coefficients that the method of the record finds."""
  count = len(opened.directories)

  def measure(coefficients: weights.Coefficients) -> float:
    return measured.loss(coefficients, halves.CHOICE)

  if record['method'] == 'greedy_soup':
    made = soup.greedy(count, measure)
    log.info(
      'greedy soup: tried inputs %s, kept %s',
      ', '.join(str(i + 1) for i in made.order),
      ', '.join(str(i + 1) for i in made.kept),
    )
    return made.coefficients
  names = groups.complete(record['groups'], opened.leaves, opened.stacks)

  def covering(rules: search.Rules) -> weights.Coefficients:
    rows = [row for _, row in rules]
    if len({*rows}) == 1:
      return rows[0]
    # Any row does for the parameters that are equal in all inputs.
    return rules if names[-1] == '.*' else (*rules, ('.*', rows[-1]))

  found = search.search(
    names,
    count,
    lambda rules: measure(covering(rules)),
    record['evaluations'],
    record['seed'],
  )
  log.info('search: the best of %d mixes has %s %.4f', found.measured, *measured.shown(found.loss))
  return covering(found.coefficients)


class Evaluations:
  """Measured mixes, which are kept on disk: a mix is not measured again after a restart.

  Args:
    opened: the inputs.
    folder: where they are kept.
    examples: most questions per task in each half.
    split: split of the tasks.

  Attributes:
    what: 'validation loss', or 'score' if there are tasks.

  Raises:
    SphinxError: the folder has measurements of other inputs or data, or there is a single batch.
  """

  def __init__(
    self, opened: mix_measure.Inputs, folder: epath.Path, examples: int, split: str
  ) -> None:
    self._opened = opened
    self.what = 'score' if opened.sources else 'validation loss'
    run = opened.identity(examples, split)
    hosts.on_process_0(
      lambda: predictions.claim_folder(folder, run, who=f"measured mixes in '{folder}'")
    )
    self._measured = mix_measure.Measured(folder / 'evaluations.jsonl')
    validation, names = opened.parents.data.validation(), (halves.CHOICE, halves.REPORT)
    self._batches = {half: halves.of_batches(validation, half) for half in names}
    self._sources = {
      half: {task: halves.Half(source, half) for task, source in opened.sources.items()}
      for half in names
    }
    self._score: mix_measure.Scorer | None = None
    if opened.sources:
      identity = f'linear of {" and ".join(opened.names)}'
      self._score = mix_measure.scorer(opened, examples, folder / 'answers', identity)

  def loss(self, coefficients: weights.Coefficients, half: str) -> float:
    """Returns what is to be low: the mean loss, or the negative mean score; infinity for NaN.

    Args:
      coefficients: of the mix.
      half: `halves.CHOICE` or `halves.REPORT`.
    """
    values = self.values(coefficients, half)
    if self._opened.sources:
      return -statistics.fmean(values[f'task/{task}'] for task in self._opened.sources)
    loss = statistics.fmean(values[name] for name in self._opened.config.validation)
    return math.inf if math.isnan(loss) else loss

  def shown(self, loss: float) -> tuple[str, float]:
    """Returns (`what`, value) of a `loss`, for the user."""
    return self.what, -loss if self._opened.sources else loss

  def values(self, coefficients: weights.Coefficients, half: str) -> dict[str, float]:
    """Returns all losses and scores of a mix; measures them if they are not on disk.

    Args:
      coefficients, half: as of `loss`.
    """
    key = {'half': half, 'coefficients': weights.as_json(coefficients)}

    def measure() -> dict[str, float]:
      params = self._opened.mix(coefficients)
      values = self._opened.parents.program.evaluate(params, self._batches[half])
      if self._score is not None:
        name = f'{half}/{text_lib.digest(json.dumps(key))}'
        values |= self._score(params, self._sources[half], name)
      log.info('mix: %s', ' '.join(f'{name} {value:.4f}' for name, value in values.items()))
      return values

    return self._measured.values(key, measure)


def _compare(
  measured: Evaluations, chosen: weights.Coefficients, count: int
) -> dict[str, dict[str, float]]:
  """Returns half -> name of a mix -> its loss or score: inputs alone, uniform and chosen."""
  mixes: dict[str, weights.Coefficients] = {
    f'input {i + 1}': soup.average([i], count) for i in range(count)
  }
  mixes |= {'uniform': soup.average(range(count), count), 'chosen': chosen}
  return {
    half: {
      name: measured.shown(measured.loss(coefficients, half))[1]
      for name, coefficients in mixes.items()
    }
    for half in (halves.CHOICE, halves.REPORT)
  }


def _text(chosen: weights.Coefficients, record: Mapping[str, Any]) -> str:
  """Returns the coefficients and the scores of both halves, for the user."""
  rules = weights.as_json(chosen)
  rows: list[Sequence[object]] = [('parameters', 'coefficients')]
  for rule in rules if isinstance(rules[0], list) else [('all', rules)]:
    rows.append((rule[0], ','.join(f'{share:.4g}' for share in rule[1])))
  scores = [('', f'{record["measure"]}, choice half', 'other half')]
  for name in record[halves.CHOICE]:
    scores.append((name, *(f'{record[half][name]:.4f}' for half in (halves.CHOICE, halves.REPORT))))
  best = max if record['measure'] == 'score' else min
  others = record[halves.REPORT]
  name = best(reversed(others), key=others.__getitem__)  # Of equal ones, the chosen.
  verdict = f'on the half that did not choose, the best is: {name}'
  return '\n'.join([text_lib.table(rows, 'll'), '', text_lib.table(scores, 'lrr'), '', verdict])
