"""Measures changes of a recipe: `python -m sphinx_jax.study --config=study:NAME --workdir=DIR`.

A study is a base recipe and named changes of it, each over several seeds (configs/study.py). It
writes `results.json`, the page `report.html` and the tables of the page as `study.md`.

Runs that have a step in common share it (study_plan.py). Finished steps are skipped, interrupted
ones resume, and a setting like --config.seeds=5 adds only what is missing. The same command,
started again at the same time, shares the work, on one machine or on several with a common folder
or bucket: each process claims a step before it begins (core/leases.py).

    --redraw        only draws the page of what is finished, while other processes go on
"""

import contextlib
import shlex
import sys
import time
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import run, settings, study_plan, study_results
from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.core import cli, config as config_lib, errors, files, leases, tables
from sphinx_jax.core.progress import log
from sphinx_jax.parallel import hosts
from sphinx_jax.report import study_page

FLAGS = flags.FLAGS

# Entry points that a study calls. Nothing imports an entry point, so they are found by name.
ENTRY_POINTS = tables.Table('entry point', {'run_step': 'sphinx_jax.recipe:run_step'})

_POLL_SECONDS = 5.0  # Between looks at the steps of other processes.
_DRAW_SECONDS = 60.0  # Between pages of a process.
_MAY_CHANGE = ('title', 'seeds', 'changes', 'pairs', 'lease_seconds')


def run_study(study: ConfigDict, workdir: str, command: str) -> epath.Path:
  """Runs every step that no process has finished, and draws the page.

  A step that fails does not stop those that do not need it.

  Args:
    study: config of the study.
    workdir: directory or gs:// URL of everything that is written.
    command: the command of this study, for the page.

  Returns:
    The path of the page.

  Raises:
    SphinxError: the workdir belongs to another study, steps failed, or the changes of a pair have
      no question in common.
  """
  plan = study_plan.plan(study)
  workdir = _claim(study, workdir)
  failed: dict[str, str] = {}
  drawn = time.monotonic()
  while True:
    with contextlib.ExitStack() as stack:
      name, waits = None, False
      if hosts.process_index() == 0:
        name, waits = _next(plan, workdir, failed, study.lease_seconds, stack)
      name, waits = hosts.broadcast([name, waits])
      if name is not None:
        log.info(
          'study: %s, %d of %d steps finished', name, _finished(plan, workdir), len(plan.steps)
        )
        try:
          seconds = ENTRY_POINTS['run_step'](plan.steps[name].recipe, name, workdir / 'steps')
          log.info('study: %s took %.0f s', name, seconds)
        except errors.SphinxError as error:
          if hosts.process_count() > 1:  # The others may be inside the step.
            raise
          failed[name] = str(error)
          log.error('study: %s failed: %s', name, error)
    if name is None and not waits:
      break
    if name is None:
      time.sleep(_POLL_SECONDS)
    elif time.monotonic() - drawn > _DRAW_SECONDS:
      hosts.on_process_0(lambda: draw(study, plan, workdir, command, wait=False))
      drawn = time.monotonic()
  hosts.on_process_0(lambda: draw(study, plan, workdir, command))
  if failed:
    raise errors.SphinxError('\n'.join(f'{name}: {line}' for name, line in failed.items()))
  return workdir / 'report.html'


def _claim(study: ConfigDict, workdir: str) -> epath.Path:
  """Claims the workdir for the study, whose changes and seeds may differ between starts."""
  base = study.base
  unused = [f'base.{name}' for name in base if name != 'steps' and base[name].kind == 'report']
  resizable = [f'base.{step}.{setting}' for step in base.steps for setting in run.RESIZABLE]
  return run.claim(study, workdir, ignore=(*_MAY_CHANGE, *unused, *resizable))


def _is_done(workdir: epath.Path, name: str) -> bool:
  return (workdir / 'steps' / name / 'done.json').exists()


def _finished(plan: study_plan.Plan, workdir: epath.Path) -> int:
  return sum(_is_done(workdir, name) for name in plan.steps)


def _next(
  plan: study_plan.Plan,
  workdir: epath.Path,
  failed: dict[str, str],
  seconds: float,
  stack: contextlib.ExitStack,
) -> tuple[str | None, bool]:
  """Claims a step that can begin.

  Args:
    plan: the plan.
    workdir: directory of the study.
    failed: steps that are left out, with those that need them.
    seconds: of a lease.
    stack: holds the lease.

  Returns:
    (its name or None, whether other processes are at work on steps that are not finished).
  """
  out, waits = set(failed), False
  done = {name for name in plan.steps if _is_done(workdir, name)}
  for name, step in plan.steps.items():  # Parents come first.
    if name in done or out.intersection((name, *step.parents)):
      out |= {name} - done
      continue
    if done.issuperset(step.parents):
      attempt = stack.enter_context(contextlib.ExitStack())
      if attempt.enter_context(leases.claimed(workdir / 'leases', name, seconds)):
        if not _is_done(workdir, name):  # It may have been finished since.
          return name, False
        done.add(name)
      attempt.close()
    waits |= name not in done
  return None, waits


def draw(
  study: ConfigDict, plan: study_plan.Plan, workdir: epath.Path, command: str, wait: bool = True
) -> dict[str, Any] | None:
  """Writes results.json, study.md and the page of what is finished.

  Args:
    study: config of the study.
    plan: its plan.
    workdir: directory of the study.
    command: see `run_study`.
    wait: whether to wait while another process draws. It is left to that process otherwise.

  Returns:
    The results, or None if another process draws.
  """
  while True:
    with leases.claimed(workdir / 'leases', 'page', study.lease_seconds) as is_free:
      if is_free:
        results = study_results.collect(study, plan, workdir / 'steps', command)
        files.write_json(workdir / 'results.json', results)
        study_page.write(workdir, results)
        return results
    if not wait:
      return None
    time.sleep(1)


def _command() -> str:
  """The command of this process, without the settings that belong to this machine."""
  own = ('--workdir', '--redraw')
  arguments = [argument for argument in sys.argv[1:] if not argument.startswith(own)]
  return shlex.join(['python', '-m', 'sphinx_jax.study', *arguments])


def main() -> None:
  """Runs or draws the study of the command line."""
  settings.check_study(FLAGS.config)
  if FLAGS.redraw:
    plan = study_plan.plan(FLAGS.config)
    workdir = _claim(FLAGS.config, FLAGS.workdir)
    draw(FLAGS.config, plan, workdir, _command())
    result = workdir / 'report.html'
  else:
    facts = {'config': config_lib.to_dict(FLAGS.config), 'workdir': FLAGS.workdir}
    with hosts.session(facts):
      result = run_study(FLAGS.config, FLAGS.workdir, _command())
  print(f'result: {checkpoints.absolute_path(result)}')


if __name__ == '__main__':
  cli.define_config()
  cli.define_path(
    'workdir', None, 'Directory of the study. The same directory again resumes.', required=True
  )
  flags.DEFINE_bool('redraw', False, 'Only draw the page of what is finished.')
  cli.run(main)
