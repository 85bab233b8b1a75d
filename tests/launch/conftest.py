"""A fake cloud: a repository with the launch scripts, and a fake gcloud and python3 on PATH."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

# The Python of a worker: new enough, copies itself into virtual environments, and records the
# arguments of pip and of our entry points.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  '-m venv '*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  '-m pip '*) echo "$*" >> "$HOME/pip" ;;
  '-c import sys; '*) ;;
  '-m sphinx_jax.'*) echo "$*" >> "$FAKE/trained" ;;
  *) exit 1 ;;
esac
"""


@dataclasses.dataclass
class Cloud:
  """The fake cloud and the repository from which the scripts are launched.

  Attributes:
    fake: folder of the fake gcloud.
    repository: folder of the repository.
    environment: environment variables of the scripts.
  """

  fake: pathlib.Path
  repository: pathlib.Path
  environment: dict

  def configure(self, **files):
    """Writes the files that configure the fake gcloud."""
    for name, text in files.items():
      (self.fake / name).write_text(str(text))

  def start(self, script, *arguments, **environment):
    """Starts a launch script."""
    return subprocess.Popen(
      ['bash', f'launch/{script}', *arguments],
      cwd=self.repository,
      text=True,
      env={**self.environment, **environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      # A shell cannot trap a signal that its parent ignores, as tests in the background do.
      preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )

  def launch(self, script, *arguments, **environment):
    """Runs a launch script and returns (exit code, output, messages)."""
    process = self.start(script, *arguments, **environment)
    output, messages = process.communicate(timeout=180)
    return process.returncode, output, messages

  def run(self, script, command, *settings, **environment):
    """Runs a shell command on a slice of type v4-8, by a launch script."""
    return self.launch(
      script,
      '--name=mine',
      '--zone=here',
      '--project=ours',
      '--type=v4-8',
      *settings,
      '--',
      'bash',
      '-c',
      command,
      **environment,
    )

  def calls(self, verb=None):
    """The calls of gcloud so far: lists of the arguments after `gcloud compute tpus`."""
    path = self.fake / 'calls'
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [call for call in calls if verb in (None, call[1])]

  def log(self, worker):
    return (self.repository / 'logs' / 'mine' / f'worker-{worker}.log').read_text()


def _executable(path, text):
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
  fake, repository, programs = tmp_path / 'fake', tmp_path / 'repository', tmp_path / 'bin'
  for folder in (fake, repository, programs):
    folder.mkdir()
  shutil.copytree(
    ROOT / 'launch',
    repository / 'launch',
    ignore=shutil.ignore_patterns('*.ipynb', '.ipynb_checkpoints'),
  )
  for name in ('setup.py', 'constraints.txt', '.gitignore'):
    shutil.copy(ROOT / name, repository / name)
  (repository / 'tests').mkdir()
  (repository / 'tests' / 'large.bin').write_bytes(b'not sent')
  git = ['git', '-c', 'user.name=test', '-c', 'user.email=test@example.com']
  for arguments in (['init', '--quiet'], ['add', '.'], ['commit', '--quiet', '--message=all']):
    subprocess.run([*git, *arguments], cwd=repository, check=True)
  program = pathlib.Path(__file__).parent / 'fake_gcloud.py'
  _executable(programs / 'gcloud', f'#!/bin/sh\nexec {sys.executable} -S -E {program} "$@"\n')
  _executable(programs / 'python3', PYTHON)
  ours = ('TPU_', 'SPHINX_JAX', 'PYTHON', 'GIT_')
  environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
  environment.update(PATH=f'{programs}:{environment["PATH"]}', FAKE=str(fake), TPU_POLL='0.05')
  environment['HOME'] = str(fake)  # For what the fake python writes on this machine.
  return Cloud(fake, repository, environment)
