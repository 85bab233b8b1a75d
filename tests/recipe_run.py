"""One run of the quick recipe, as a user starts it."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parent.parent


def one_device() -> dict[str, str]:
  """The environment of a user's machine: without fake devices."""
  return {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}


def run_recipe(workdir: pathlib.Path) -> subprocess.CompletedProcess:
  """Runs the newcomer's command to its end, in any directory."""
  return subprocess.run(
    ['bash', ROOT / 'launch' / 'local.sh', '--quick', f'--workdir={workdir}'],
    env=one_device(),
    cwd=workdir.parent,
    capture_output=True,
    text=True,
  )
