"""Kills the recipe at random moments and compares it with an uninterrupted run.

    python benchmarks/kill_recipe.py --workdir=/tmp/kill --kills=3

Both runs use `mini:quick`; further arguments go to both of them. Prints the moments of the kills,
the steps that were finished by then, and whether all losses and all scores are equal bit for bit.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from sphinx_jax.training import writer

OBJECTIVES = ('contrast', 'distill', 'captions')
STAGES = (*(f'encoders/{name}' for name in OBJECTIVES), 'real', 'synthetic', 'stage2')


def start(workdir: pathlib.Path, arguments: Sequence[str]) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'sphinx_jax.recipe',
      '--config=mini:quick',
      f'--workdir={workdir}',
      *arguments,
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def run(workdir: pathlib.Path, arguments: Sequence[str]) -> float:
  """Runs the recipe to its end. Returns the seconds."""
  began = time.monotonic()
  if code := start(workdir, arguments).wait():
    sys.exit(f'the recipe in {workdir} ended with code {code}; run it by hand to see the error')
  return time.monotonic() - began


def results(workdir: pathlib.Path) -> dict[str, Any]:
  """Everything that must be equal: all logged losses, the mixing curve and all scores."""
  metrics = json.loads((workdir / 'metrics.json').read_text())
  losses = {
    (stage, line['step'], name): value
    for stage in STAGES
    for line in writer.read(workdir / stage)
    for name, value in line.items()
    if name not in writer.MACHINE_METRICS
  }
  return {'losses': losses, 'mix_curve': metrics['mix_curve'], 'tasks': metrics['tasks']}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True, help='a new directory')
  parser.add_argument('--kills', type=int, default=3, help='number of kills')
  parser.add_argument('--seed', type=int, default=0, help='seed of the kills')
  options, arguments = parser.parse_known_args()
  whole, broken = options.workdir / 'whole', options.workdir / 'broken'
  seconds = run(whole, arguments)
  print(f'uninterrupted run: {seconds:.0f} s', flush=True)

  draw = random.Random(options.seed)
  for _ in range(options.kills):
    # At most 0.8 of the run in total, so that every kill comes before its end.
    delay = draw.uniform(0.2, 0.8) * seconds / options.kills
    process = start(broken, arguments)
    try:
      process.wait(timeout=delay)
      print('the run finished before the next kill', flush=True)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
      steps = sorted(path.parent.name for path in broken.glob('*/done.json'))
      finished = ', '.join(steps) or 'nothing'
      print(f'SIGKILL after {delay:.0f} s; finished by then: {finished}', flush=True)
  run(broken, arguments)

  first, second = results(whole), results(broken)
  for part in first:
    print(f'{part}: {"equal" if first[part] == second[part] else "DIFFERENT"}')
  sys.exit(first != second)


if __name__ == '__main__':
  main()
