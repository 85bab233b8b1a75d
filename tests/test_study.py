"""A study shares common steps, resumes, is shared by processes, and states what it has measured."""

import collections
import json
import pathlib
import sys
import threading
import time

import pytest
from ml_collections import ConfigDict

from sphinx_jax import datasets, run, settings, study, study_plan
from sphinx_jax.configs import mini, study as studies
from sphinx_jax.core import config as config_lib, errors, leases
from sphinx_jax.evaluation import held_out
from tests import command

TASKS = ('vqa', 'rec')


def make(seeds=3, **changes):
  """A study of the quick recipe with the changes {name: ((setting, value), ...)}, and the base."""
  base = mini.get_config('quick').to_dict()
  base['evaluate']['tasks'] = TASKS
  sets = {domain: mini.caption(domain, 'test') for domain in ('real', 'synthetic')}
  base['losses'] = dict(kind='losses', checkpoint='mix', like='real', sets=sets, batches=2, seed=0)
  base['real']['init_from'] = None
  base['steps'] = ('data', 'real', 'synthetic', 'mix', 'losses', 'stage2', 'evaluate', 'report')
  return ConfigDict(
    dict(
      title='Does it help?',
      base=base,
      changes=dict(base=(), **changes),
      pairs=tuple((change, 'base') for change in changes),
      seeds=seeds,
      common=(),
      lease_seconds=100.0,
    )
  ).lock()


LR = ('stage2.optimizer.lr', 1e-3)


class Steps:
  """Stands for the steps of a recipe. Answers of a lower learning rate are right, of others not."""

  def __init__(self):
    self.ran = []
    self.before = lambda name: None

  def __call__(self, recipe, name, folder):
    self.before(name)
    self.ran.append(name)
    section, place = recipe[name], folder / name
    place.mkdir(parents=True, exist_ok=True)
    if section.kind == 'train':
      lines = [{'step': step, 'loss': 2.0 / step} for step in (1, 2)]
      (place / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    if section.kind == 'losses':
      (place / 'losses.json').write_text(json.dumps({'real': [1.0, 2.0], 'synthetic': [3.0, 4.0]}))
    if section.kind == 'evaluate':
      is_right = recipe[section.checkpoint].optimizer.lr == LR[1]
      lines = [
        {'id': f'image{n}', 'numerator': float(is_right or n % 4 == 0), 'denominator': 1.0}
        for n in range(40)
      ]
      for task in section.tasks:
        (place / f'{task}.final.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (place / 'done.json').write_text(json.dumps({'seconds': 60.0, 'peak_rss_bytes': 1}))
    return 60.0

  def kinds(self):
    return sorted(name.rpartition('-')[0] for name in self.ran)


@pytest.fixture
def steps(monkeypatch):
  steps = Steps()
  monkeypatch.setattr(study, 'ENTRY_POINTS', {'run_step': steps})
  monkeypatch.setattr(study, '_POLL_SECONDS', 0.05)
  return steps


def results_of(workdir):
  return json.loads((pathlib.Path(workdir) / 'results.json').read_text())


def test_a_step_is_shared_by_the_runs_in_which_it_and_its_parents_are_equal():
  plan = study_plan.plan(make(seeds=2, lr=(LR,), data=(('data.seed', 1),)))
  folders = {(each.change, each.seed): each.folders for each in plan.runs}
  shared = lambda name, *runs: len({folders[each][name] for each in runs}) == 1
  assert shared('mix', ('base', 0), ('lr', 0)) and not shared('stage2', ('base', 0), ('lr', 0))
  assert shared('data', ('base', 0), ('base', 1)) and not shared('real', ('base', 0), ('base', 1))
  assert not shared('mix', ('base', 0), ('data', 0))  # Its parents' data differ.
  for name, step in plan.steps.items():
    assert all(
      list(plan.steps).index(parent) < list(plan.steps).index(name) for parent in step.parents
    )
    settings.check_recipe(step.recipe)


def test_a_step_reads_what_its_run_reads(tmp_path):
  plan = study_plan.plan(make(seeds=2, lr=(LR,)))
  each = next(each for each in plan.runs if (each.change, each.seed) == ('lr', 1))
  stage2 = each.folders['stage2']
  config = run.training_run(plan.steps[stage2].recipe, stage2, tmp_path)
  assert config.init_from == str(tmp_path / each.folders['mix'])
  assert config.tokenizer == str(tmp_path / each.folders['data'] / 'tokenizer.model')
  assert (config.seed, config.optimizer.lr) == (1, 1e-3)
  mix = each.folders['mix']
  assert plan.steps[mix].recipe[mix].inputs == (each.folders['real'], each.folders['synthetic'])


def test_settings_of_the_machine_and_common_seeds_share_steps():
  of = lambda study: study_plan.plan(study).steps.keys()
  study = make(seeds=2)
  faster = make(seeds=2)
  with faster.unlocked():
    faster.base.stage2.loss_chunk, faster.base.stage2.checkpoint.every = 64, 1
    study.unlock().common = ('real',)
    faster.common = ('real',)
  assert of(study) == of(faster)
  assert [name.partition('-')[0] for name in of(study)].count('real') == 1


def test_all_changes_share_the_tokenizer_of_the_texts_of_the_base():
  alone = {'vqa': mini.get_config('quick').stage2.mixture.vqa.to_dict()}
  plan = study_plan.plan(make(alone=(('stage2.mixture', alone), ('evaluate.tasks', ('vqa',)))))
  (data,) = [name for name in plan.steps if name.startswith('data-')]
  recipe = plan.steps[data].recipe
  (stage2,) = [name for name in recipe.steps if name.startswith('stage2-')]
  assert 'ocr' in recipe[stage2].mixture and recipe[stage2].data_dir == data


def test_a_wrong_change_is_refused_before_the_first_step(steps, tmp_path):
  for rows, words in (
    ((('stage3.steps', 1),), "setting stage3.steps of change wrong.*'stage3'"),
    ((('stage2.steps', 0),), "change 'wrong': stage2.steps: got 0"),
    ((('stage2.stepz', 1),), "change 'wrong': .*did you mean 'steps'"),
    ((('steps', ('data', 'rael')),), "change 'wrong': .*did you mean 'real'"),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      study.run_study(make(wrong=rows), tmp_path, '')
  assert not steps.ran


def test_a_study_measures_the_paired_difference(steps, tmp_path):
  page = study.run_study(make(lr=(LR,)), tmp_path, 'python -m sphinx_jax.study --config=mine')
  assert steps.kinds() == sorted(
    ['data'] + ['real', 'synthetic', 'mix', 'losses'] * 3 + ['stage2', 'evaluate'] * 6
  )
  results = results_of(tmp_path)
  assert results['steps'] == [25, 25, 25 * 60.0]
  (pair,) = results['groups']['evaluate']['pairs']
  assert pair['seeds'] == 3 and list(pair['tasks']) == list(TASKS)
  mean = pair['mean']
  assert mean['baseline'] == 0.25 and mean['changed'] == 1.0 and mean['difference'] == 0.75
  assert mean['low'] < 0.75 < mean['high'] and mean['verdict'] == 'better by 0.750'
  (losses,) = results['groups']['losses']['pairs']
  assert losses['mean']['verdict'] == 'no difference seen' and losses['mean']['baseline'] == 2.5
  assert results['changes']['lr']['seconds'] == 7 * 60 and results['changes']['lr']['seeds'] == 3
  assert results['curves']['stage2']['lr'] == [[1, 2.0], [2, 1.0]]
  html, table = page.read_text(), (tmp_path / 'study.md').read_text()
  for text in (html, table):
    assert 'better by 0.750' in text and 'no difference seen' in text and '--config=mine' in text
  assert '| lr | base | 0.250 | 1.000 | +0.750 [' in table
  assert study.run_study(make(lr=(LR,)), tmp_path, '') == page and len(steps.ran) == 25


def test_more_seeds_and_changes_add_only_what_is_missing(steps, tmp_path):
  study.run_study(make(1, lr=(LR,)), tmp_path, '')
  assert results_of(tmp_path)['groups']['evaluate']['pairs'][0]['mean']['verdict'] == (
    'no verdict from one seed'
  )
  steps.ran.clear()
  study.run_study(make(2, lr=(LR,), slow=(('stage2.steps', 2),)), tmp_path, '')
  assert steps.kinds() == sorted(
    ['real', 'synthetic', 'mix', 'losses'] + ['stage2', 'evaluate'] * 4
  )
  with pytest.raises(errors.SphinxError, match='another config .base.stage2.steps'):
    other = make(1)
    other.unlock().base.stage2.steps = 2
    study.run_study(other, tmp_path, '')


def test_settings_of_the_report_of_the_base_may_change(steps, tmp_path):
  """A study has a page of its own."""
  study.run_study(make(1), tmp_path, '')
  steps.ran.clear()
  other = make(1)
  other.unlock().base.report.studies = ()
  study.run_study(other, tmp_path, '')
  assert not steps.ran


def test_an_interrupted_study_resumes_and_its_page_shows_what_is_finished(
  steps, tmp_path, monkeypatch
):
  def interrupt(name):
    if len(steps.ran) == 11:
      monkeypatch.setattr(study, '_DRAW_SECONDS', 0.0)
    if len(steps.ran) == 12:
      raise KeyboardInterrupt

  steps.before = interrupt
  with pytest.raises(KeyboardInterrupt):
    study.run_study(make(lr=(LR,)), tmp_path, '')
  results = results_of(tmp_path)
  assert results['steps'][:2] == [12, 25]
  assert results['groups']['evaluate']['pairs'][0]['seeds'] == 1
  assert 'no verdict from one seed' in (tmp_path / 'report.html').read_text()
  steps.before = lambda name: None
  monkeypatch.setattr(study, '_DRAW_SECONDS', 100.0)
  study.run_study(make(lr=(LR,)), tmp_path, '')
  assert len(steps.ran) == len(set(steps.ran)) == 25


def test_processes_share_a_study_step_by_step(steps, tmp_path):
  by_thread = {}

  def note(name):
    by_thread.setdefault(threading.get_ident(), []).append(name)
    time.sleep(0.05)

  steps.before = note
  threads = [
    threading.Thread(target=study.run_study, args=(make(lr=(LR,)), tmp_path, '')) for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(steps.ran) == len(set(steps.ran)) == 25
  assert len(by_thread) == 2 and min(map(len, by_thread.values())) > 3
  assert not list((tmp_path / 'leases').glob('*.json'))


def test_a_step_of_another_process_is_waited_for_by_those_that_need_it_alone(steps, tmp_path):
  plan = study_plan.plan(make(1, lr=(LR,)))
  stage2 = next(each.folders['stage2'] for each in plan.runs if each.change == 'lr')
  thread = threading.Thread(target=study.run_study, args=(make(1, lr=(LR,)), tmp_path, ''))
  run.claim(make(1, lr=(LR,)), tmp_path)
  with leases.claimed(tmp_path / 'leases', stage2, 100):
    thread.start()
    while len(steps.ran) < 7 and thread.is_alive():
      time.sleep(0.01)
    time.sleep(0.2)
    assert len(steps.ran) == 7 and stage2 not in steps.ran
  thread.join()
  assert len(steps.ran) == 9


def test_a_step_that_fails_stops_only_those_that_need_it(steps, tmp_path):
  plan = study_plan.plan(make(lr=(LR,)))
  broken = next(each.folders['stage2'] for each in plan.runs if each.change == 'lr')

  def fail(name):
    if name == broken:
      raise errors.SphinxError('the loss is not finite')

  steps.before = fail
  with pytest.raises(errors.SphinxError, match=f'{broken}: the loss is not finite'):
    study.run_study(make(lr=(LR,)), tmp_path, '')
  assert len(steps.ran) == 23
  assert results_of(tmp_path)['groups']['evaluate']['pairs'][0]['seeds'] == 2


@pytest.mark.parametrize('words', ['', ',quick', ',7b,224'])
@pytest.mark.parametrize('name', studies.STUDIES)
def test_every_shipped_study_has_a_plan(name, words):
  if name in ('embeddings', 'sampling') and '7b' in words:
    with pytest.raises(errors.SphinxError, match='the base mini'):
      studies.get_config(name + words)
    return
  config = studies.get_config(name + words)
  settings.check_study(config)
  plan = study_plan.plan(config)
  assert len(plan.runs) == config.seeds * len(config.changes)
  # What is measured is measured of both sides of a pair.
  for each in plan.runs:
    assert {'evaluate', 'losses'} & {each.recipe[step].kind for step in each.recipe.steps}
  assert config_lib.from_json(config_lib.to_json(config)) == config


def test_the_mixes_of_stage_1_and_joint_training_have_equal_updates():
  plan = study_plan.plan(studies.get_config('weights'))
  updates = {
    each.change: sum(
      each.recipe[name].steps for name in ('real', 'synthetic') if name in each.folders
    )
    for each in plan.runs
  }
  assert updates['mix'] == updates['joint'] == updates['synthetic'] == updates['apart']


def test_embeddings_and_scales_are_compared_at_equal_visual_tokens():
  from sphinx_jax.models import families

  for name in ('embeddings', 'scales'):
    plan = study_plan.plan(studies.get_config(name))
    tokens = {families.visual_tokens(each.recipe.stage2.model) for each in plan.runs}
    assert len(tokens) == 1


def test_a_task_alone_sees_as_many_of_its_positions_as_among_all():
  plan = study_plan.plan(studies.get_config('tasks'))
  recipes = {each.change: each.recipe for each in plan.runs}
  joint = recipes['joint'].stage2
  assert joint.sampling.by == 'tokens' and {entry.weight for entry in joint.mixture.values()} == {1}
  for task in joint.mixture:
    alone = recipes['alone'][f'stage2_{task}']
    assert list(alone.mixture) == [task] and alone.steps == joint.steps // len(joint.mixture)


def test_weights_are_learned_from_those_that_they_are_compared_with():
  config = studies.get_config('sampling')
  stage2 = {each.change: each.recipe.stage2 for each in study_plan.plan(config).runs}
  for change, baseline in config.pairs[:2]:
    assert stage2[change].sampling.by == 'learned' != stage2[baseline].sampling.by
    assert stage2[change].mixture == stage2[baseline].mixture
  assert len({entry.weight for entry in stage2['equal'].mixture.values()}) == 2  # And the text's.


@pytest.mark.parametrize('name', studies.STUDIES)
def test_both_sides_of_a_pair_are_asked_the_same_questions(name, monkeypatch):
  monkeypatch.setattr(datasets, 'open_source', lambda entry, data_dir: entry)
  config = studies.get_config(name)
  asked = collections.defaultdict(dict)
  for change in config.changes:
    recipe = study_plan.changed(config, change)
    for step in recipe.steps:
      section = recipe[step]
      if section.kind == 'evaluate':
        stage = recipe[section.get('like', section.checkpoint)]
        sources = held_out.open_split(stage, section.tasks, section.split)
        asked[change] |= {
          (step.partition('_')[0], task): {
            key: entry.get(key) for key in ('source', 'task', 'domain', 'split')
          }
          for task, entry in sources.items()
        }
  for change, baseline in config.pairs:
    assert asked[change] == asked[baseline]


def test_the_recipe_reports_every_study():
  assert set(mini.STUDIES) == set(studies.STUDIES)


def test_the_quick_study_runs_from_first_to_last(capsys, tmp_path, monkeypatch):
  """What a user starts, with real steps: two changes, two seeds."""
  arguments = ('--config=study:tasks,quick', f'--workdir={tmp_path}')
  monkeypatch.setattr(sys, 'argv', ['study', *arguments])  # Where the page has its command from.
  code, out, err = command.run(capsys, 'study', *arguments)
  assert code == 0 and out == f'result: {tmp_path / "report.html"}\n', err
  results = results_of(tmp_path)
  assert results['steps'][0] == results['steps'][1] >= 10
  assert results['command'] == 'python -m sphinx_jax.study --config=study:tasks,quick'
  (pair,) = results['groups']['evaluate']['pairs']
  assert (pair['change'], pair['baseline'], pair['seeds']) == ('common', 'joint', 2)
  assert all(0 <= task['changed'] <= 1 for task in pair['tasks'].values())
  (tmp_path / 'report.html').unlink()
  code, _, err = command.run(capsys, 'study', *arguments, '--redraw')
  assert code == 0 and (tmp_path / 'report.html').exists(), err
  assert 'finished' not in err
