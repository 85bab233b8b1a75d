"""Kills the recipe at random moments and compares it with an unbroken run:

    python benchmarks/kill_recipe.py --workdir=/tmp/kill --kills=3

Both runs use `mini:quick` (further arguments go to both). Printed are the moments of the kills, the steps
that were finished by then, and whether every loss and every score is equal, to the last bit.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

from sphinx_jax.training import writer

ROOT = pathlib.Path(__file__).parent.parent
STAGES = ('real', 'synthetic', 'stage2')
CLOCKS = (
  'second',
  'rss',
  'wait',
)  # Parts of names of metrics that measure the machine, not the model.


def start(workdir, extra):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'sphinx_jax.recipe',
      '--config=mini:quick',
      f'--workdir={workdir}',
      *extra,
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def run(workdir, extra):
  """Runs to the end; returns the seconds."""
  began = time.monotonic()
  if code := start(workdir, extra).wait():
    sys.exit(f'the recipe in {workdir} ended with code {code}; run it by hand to see why')
  return time.monotonic() - began


def numbers(workdir):
  """Everything that must be equal: every logged loss, the mixing curve, every score."""
  metrics = json.loads((workdir / 'metrics.json').read_text())
  losses = {}
  for stage in STAGES:
    for line in writer.read(workdir / stage):
      losses |= {
        (stage, line['step'], name): value
        for name, value in line.items()
        if not any(clock in name for clock in CLOCKS)
      }
  return {'losses': losses, 'mix_curve': metrics['mix_curve'], 'tasks': metrics['tasks']}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=3)
  parser.add_argument('--seed', type=int, default=0)
  options, extra = parser.parse_known_args()
  whole, broken = options.workdir / 'whole', options.workdir / 'broken'
  seconds = run(whole, extra)
  print(f'unbroken run: {seconds:.0f} s', flush=True)
  draw = random.Random(options.seed)
  for _ in range(options.kills):
    moment = (
      draw.uniform(0.2, 0.8) * seconds / options.kills
    )  # All of them fall before a run of this length ends.
    process = start(broken, extra)
    try:
      process.wait(timeout=moment)
      print('finished before the next kill', flush=True)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
      steps = sorted(path.parent.name for path in broken.glob('*/done.json'))
      print(
        f'kill -9 after {moment:.0f} s; finished by then: {", ".join(steps) or "nothing"}',
        flush=True,
      )
  run(broken, extra)
  first, second = numbers(whole), numbers(broken)
  for part in first:
    print(f'{part}: {"equal" if first[part] == second[part] else "DIFFERENT"}')
  sys.exit(first != second)


if __name__ == '__main__':
  main()
