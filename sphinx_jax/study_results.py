"""The results of a study, from the finished steps of its plan.

Everything that the page shows, and every number of its tables, is in one dictionary of JSON values,
`results.json`. The results of steps of one kind are a group, whose name is that of the step up to
its first underscore: `evaluate`, or `evaluate_vqa` and `evaluate_rec` together.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import run
from sphinx_jax.core import errors, files
from sphinx_jax.evaluation import held_out, paired
from sphinx_jax.models import families
from sphinx_jax.study_plan import Plan, Run

# Change -> task -> seed -> the answers.
Scores = dict[str, dict[str, dict[int, paired.Answers]]]


def collect(study: ConfigDict, plan: Plan, folder: epath.Path, command: str) -> dict[str, Any]:
  """Returns the results of what is finished.

  Args:
    study: config of the study.
    plan: its plan.
    folder: where the steps stand.
    command: the command that makes the study.

  Returns:
    'title', 'command', 'seeds';
    'steps': [number of finished ones, of all, their seconds];
    'changes': {change: {'settings': [[path, value]], 'updates', 'visual_tokens', 'seconds',
    'seeds': number of finished runs}};
    'groups': {group: {'lower_is_better', 'pairs': [{'change', 'baseline', 'seeds',
    'tasks': {task: comparison}, 'mean': comparison}]}}, a comparison being the fields of
    `paired.Difference`, 'p_corrected' and 'verdict';
    'curves': {training step: {change: [[update, loss averaged over seeds]]}}.

  Raises:
    SphinxError: both changes of a pair are finished, and have no question in common.
  """
  seconds = {
    name: files.read_json(folder / name / 'done.json')['seconds']
    for name in plan.steps
    if (folder / name / 'done.json').exists()
  }
  return {
    'title': study.title,
    'command': command,
    'seeds': study.seeds,
    'steps': [len(seconds), len(plan.steps), sum(seconds.values())],
    'changes': {name: _describe(study, plan, name, seconds) for name in study.changes},
    'groups': _groups(study, plan, folder, seconds),
    'curves': _curves(plan, folder, seconds),
  }


def _describe(
  study: ConfigDict, plan: Plan, change: str, seconds: Mapping[str, float]
) -> dict[str, Any]:
  """Returns what a change is, and what its runs cost."""
  runs = [each for each in plan.runs if each.change == change]
  recipe = runs[0].recipe
  training = run.training_steps(recipe)
  finished = [each for each in runs if all(name in seconds for name in each.folders.values())]
  took = [sum(seconds[name] for name in each.folders.values()) for each in finished]
  return {
    'settings': [[path, value] for path, value in study.changes[change]],
    'updates': sum(recipe[name].steps for name in training),
    'visual_tokens': families.visual_tokens(recipe[training[-1]].model),
    'seconds': sum(took) / len(took) if took else None,
    'seeds': len(finished),
  }


def _groups(
  study: ConfigDict, plan: Plan, folder: epath.Path, seconds: Mapping[str, float]
) -> dict[str, Any]:
  groups: dict[str, Scores] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
  is_loss = {}
  for each in plan.runs:
    for name, place in each.folders.items():
      kind, group = each.recipe[name].kind, name.partition('_')[0]
      if kind not in ('evaluate', 'losses'):
        continue
      is_loss[group] = kind == 'losses'
      if place in seconds:
        for task, answers in _answers(each, name, folder / place).items():
          groups[group][each.change][task][each.seed] = answers
  return {
    group: {
      'lower_is_better': is_loss[group],
      'pairs': _pairs(study, groups[group], is_loss[group]),
    }
    for group in is_loss
  }


def _answers(each: Run, name: str, place: epath.Path) -> dict[str, paired.Answers]:
  """Returns {task: its answers} of a finished step. A batch of a set of losses is an example."""
  section = each.recipe[name]
  if section.kind == 'losses':
    return {
      held_out_set: {f'{held_out_set}/{number}': (loss, 1.0) for number, loss in enumerate(losses)}
      for held_out_set, losses in files.read_json(place / 'losses.json').items()
    }
  return {
    task: held_out.by_record(files.read_jsonl(place / f'{task}.final.jsonl'))
    for task in section.tasks
  }


def _pairs(study: ConfigDict, scores: Scores, lower_is_better: bool) -> list[dict[str, Any]]:
  """Returns the comparisons of one group, in the order of `study.pairs`."""
  pairs = []
  for change, baseline in study.pairs:
    first, second = scores.get(change, {}), scores.get(baseline, {})
    tasks = [task for task in second if task in first]
    seeds = [
      seed
      for seed in range(study.seeds)
      if all(seed in first[task] and seed in second[task] for task in tasks)
    ]
    pair = {'change': change, 'baseline': baseline, 'seeds': len(seeds), 'tasks': {}, 'mean': None}
    if tasks and seeds:
      sides = (
        {task: [side[task][seed] for seed in seeds] for task in tasks} for side in (first, second)
      )
      try:
        found = paired.compare(*sides)
      except errors.SphinxError as error:
        raise errors.SphinxError(f"changes '{change}' and '{baseline}': {error}") from error
      corrected = paired.holm({task: found[task].p for task in tasks})
      pair['tasks'] = {
        task: _comparison(found[task], corrected[task], lower_is_better) for task in tasks
      }
      pair['mean'] = found.get(paired.MEAN, found[tasks[0]])
    pairs.append(pair)
  # The averages of all pairs are tested together, too.
  corrected = paired.holm(
    {number: pair['mean'].p for number, pair in enumerate(pairs) if pair['mean'] is not None}
  )
  for number, p in corrected.items():
    pairs[number]['mean'] = _comparison(pairs[number]['mean'], p, lower_is_better)
  return pairs


def _comparison(
  difference: paired.Difference, p: float | None, lower_is_better: bool
) -> dict[str, Any]:
  verdict = paired.verdict(difference, p, lower_is_better)
  return difference._asdict() | {'p_corrected': p, 'verdict': verdict}


def _curves(
  plan: Plan, folder: epath.Path, seconds: Mapping[str, float]
) -> dict[str, dict[str, list[list[float]]]]:
  """Returns the loss of each training step by update, averaged over the finished seeds."""
  losses: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
  for each in plan.runs:
    for name in run.training_steps(each.recipe):
      if each.folders[name] in seconds:
        lines = files.read_jsonl(folder / each.folders[name] / 'metrics.jsonl', drop_partial=True)
        for line in lines:
          if 'loss' in line:
            losses[name, each.change][line['step']].append(line['loss'])
  curves: dict[str, dict[str, list[list[float]]]] = defaultdict(dict)
  for (name, change), by_update in losses.items():
    curves[name][change] = [
      [update, sum(values) / len(values)] for update, values in sorted(by_update.items())
    ]
  return dict(curves)
