"""What a door answers to a command line that is wrong: one clear line, no traceback, exit code 2."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def _open(*arguments):
  return subprocess.run(
    [sys.executable, '-m', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--workdri=x'], 'Did you mean: workdir'),
    (['--config=configs/mini.py', '--config.stage2.optimizer.lrr=1'], 'Did you mean "lr"'),
    (['--config=configs/mini.py', '--config.stage2.steps=many'], 'stage2.steps'),
    (['--config=configs/mni.py'], "--config: got 'configs/mni.py'"),
    (
      ['--config=configs/mini.py:quik'],
      "got 'quik', expected one of official, quick; did you mean 'quick'?",
    ),
    (['stray'], "command line: got 'stray'"),
  ],
)
def test_a_wrong_command_line_gets_one_clear_line(arguments, message, tmp_path):
  done = _open('sphinx_jax.recipe', f'--workdir={tmp_path / "run"}', *arguments)
  assert done.returncode == 2
  last = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
  assert len(last) == 1 and message in last[0], done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def test_a_workdir_of_another_config_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{"steps": ["other"]}')
  done = _open('sphinx_jax.recipe', f'--workdir={tmp_path}')
  assert (
    done.returncode == 2
    and 'a run of another config (steps:' in done.stderr
    and 'Traceback' not in done.stderr
  )


def test_help_tells():
  done = _open('sphinx_jax.recipe', '--help')
  assert "The paper's recipe" in done.stdout and '--workdir' in done.stdout
