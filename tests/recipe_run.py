"""One run of the quick recipe, as a user starts it."""

import pathlib
import subprocess

from tests import xla

ROOT = pathlib.Path(__file__).parent.parent


def run_recipe(workdir: pathlib.Path) -> subprocess.CompletedProcess:
  """Runs the newcomer's command to its end, in any directory."""
  return subprocess.run(
    ['bash', ROOT / 'launch' / 'local.sh', '--quick', f'--workdir={workdir}'],
    env=xla.environment(),
    cwd=workdir.parent,
    capture_output=True,
    text=True,
  )
