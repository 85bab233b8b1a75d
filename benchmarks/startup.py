"""Time from a command to what its user waits for, with and without compiled programs on disk.

    python -m benchmarks.startup --checkpoint=workdir/mini/stage2

`chat` is timed to its first answer about an image, `train` (configs/forkme.py with a small file)
to its first line of metrics, which is that of its first update. Each runs first without any
compiled programs ('cold'), then --runs times with those of the run before ('warm'). CPU seconds are
those of the whole process.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from sphinx_jax.core import cli

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 600


class Times(NamedTuple):
  """Seconds until the user has what they wait for, and CPU seconds of the whole process."""

  wall: float
  cpu: float


def measure(arguments: list[str], cache: pathlib.Path, is_there: Callable[[], bool]) -> Times:
  """Runs `python -m ARGUMENTS` in an environment with a cache directory of its own."""
  env = {name: value for name, value in os.environ.items() if 'CACHE' not in name}
  env |= {'XDG_CACHE_HOME': str(cache), 'PYTHONUNBUFFERED': '1'}
  with open(cache.parent / 'output.txt', 'wb') as output:
    before, began = os.times(), time.monotonic()
    process = subprocess.Popen(
      [sys.executable, '-m', *arguments], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
    )
    wall, runs = None, True
    while runs and time.monotonic() - began < TIMEOUT:
      runs = process.poll() is None
      if wall is None and is_there():
        wall = time.monotonic() - began
      time.sleep(0.02)
    process.kill()
    process.wait()
    after = os.times()
  if process.returncode or wall is None:
    sys.exit((cache.parent / 'output.txt').read_text())
  cpu = after.children_user + after.children_system - before.children_user - before.children_system
  return Times(wall, cpu)


def write_examples(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes a JSONL file of 64 examples and their images. Returns it and an image."""
  draw = np.random.default_rng(0)
  lines = []
  for i in range(64):
    Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f'{i}.png')
    turns = [('human', 'What is this?'), ('gpt', 'Noise.')]
    dialog = [{'from': who, 'value': text} for who, text in turns]
    lines.append(json.dumps({'image': f'{i}.png', 'conversations': dialog}) + '\n')
  (folder / 'my.jsonl').write_text(''.join(lines))
  return folder / 'my.jsonl', folder / '0.png'


def main() -> None:
  with tempfile.TemporaryDirectory() as directory:
    folder = pathlib.Path(directory)
    examples, image = write_examples(folder)

    def chat(number: int, cache: pathlib.Path) -> Times:
      answer = folder / f'answer{number}.png'
      arguments = [f'--checkpoint={FLAGS.checkpoint}', f'--image={image}', f'--output={answer}']
      arguments += ['--prompt=How many red circles are there?', '--max_new_tokens=16']
      output = folder / 'output.txt'
      return measure(
        ['sphinx_jax.chat', *arguments], cache, lambda: bool(answers(output.read_text()))
      )

    def train(number: int, cache: pathlib.Path) -> Times:
      metrics = folder / f'run{number}' / 'metrics.jsonl'
      arguments = [f'--config=forkme:{examples},{FLAGS.checkpoint}', f'--workdir={metrics.parent}']
      arguments += ['--config.steps=2', '--config.log_every=1', '--config.eval_batches=1']
      return measure(
        ['sphinx_jax.train', *arguments],
        cache,
        lambda: metrics.exists() and metrics.stat().st_size > 0,
      )

    print('| command | start | seconds | CPU seconds |\n| --- | --- | --- | --- |')
    for name in FLAGS.commands:
      command = {'chat': chat, 'train': train}[name]
      cache = folder / name
      cache.mkdir()
      times = [command(number, cache) for number in range(1 + FLAGS.runs)]
      for start, measured in (('cold', times[:1]), ('warm', times[1:])):
        wall, cpu = (statistics.median(column) for column in zip(*measured))
        spread = f' ({min(measured).wall:.1f} to {max(measured).wall:.1f})' if measured[1:] else ''
        print(f'| {name} | {start} | {wall:.1f}{spread} | {cpu:.1f} |', flush=True)


def answers(output: str) -> list[str]:
  """The lines that are not of the log, which begin with the time."""
  return [line for line in output.splitlines() if line and not re.match(r'\d\d:\d\d:\d\d ', line)]


if __name__ == '__main__':
  cli.define_path('checkpoint', None, 'A run of the mini recipe.', required=True)
  flags.DEFINE_multi_enum('commands', ['chat', 'train'], ['chat', 'train'], 'What to time.')
  flags.DEFINE_integer('runs', 3, 'Warm runs.', lower_bound=1)
  cli.run(main)
