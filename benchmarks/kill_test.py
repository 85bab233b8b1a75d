"""Kills one training run repeatedly and compares it with an uninterrupted run.

    python benchmarks/kill_test.py --workdir=/tmp/kill_test --kills=20

The model is that of configs/mini.py with small batches, and every second step is saved. --seed
decides the kills. A third of them is SIGTERM, the others are SIGKILL. Some come at a random moment
after the start of the process, some during training and some during a save. Every start is the same
`python -m sphinx_jax.train` with a hook. The hook writes the hashes of the examples of every batch
that reaches an update, and the step at which the start resumes. These notes determine the examples
on which the final weights were trained.

Prints lost examples, repeated examples and the largest difference of a metric. The exit code is 0
if all of them are 0, every start resumed from the newest save, and SIGTERM took at most 30 s.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from sphinx_jax.core import files

LONGEST_SIGTERM = 30  # Seconds from SIGTERM to the end of the process.


@dataclasses.dataclass(frozen=True)
class Kill:
  """One kill.

  Attributes:
    signal: name of the signal.
    moment: 'any moment', 'training' or 'saving'.
    code: exit code of the process.
    saving: whether a save was unfinished at the kill.
    seconds: time from the signal to the end of the process.
    newest_save: step of the newest save after the end of the process, or 0.
  """

  signal: str
  moment: str
  code: int
  saving: bool
  seconds: float
  newest_save: int


def train_with_hook(notes: str) -> None:
  """Runs sphinx_jax.train, and writes a line for its first step and one for each batch."""
  import xxhash

  from sphinx_jax import run
  from sphinx_jax.parallel import placement

  file = open(notes, 'a', buffering=1)
  file.write(json.dumps({'process': os.getpid()}) + '\n')
  restore_or_init, put = run.restore_or_init, placement.put

  def noted_restore(*args: Any) -> tuple:
    state, *others = restore_or_init(*args)
    file.write(json.dumps({'start': int(state.step)}) + '\n')
    return state, *others

  def noted_put(batch: dict, sharding: Any) -> dict:
    hashes = []
    for row in range(len(batch['tokens'])):
      pixels = batch['images'][row].tobytes()
      for segment in range(1, batch['segments'][row].max() + 1):
        text = batch['tokens'][row][batch['segments'][row] == segment].tobytes()
        hashes.append(xxhash.xxh3_64_hexdigest(text + pixels))
    file.write(json.dumps({'examples': hashes}) + '\n')
    return put(batch, sharding)

  run.restore_or_init, placement.put = noted_restore, noted_put
  runpy.run_module('sphinx_jax.train', run_name='__main__')


def final_history(notes: pathlib.Path) -> list[list[str]]:
  """The examples of each step of the history that led to the final weights."""
  history = []
  for note in files.read_jsonl(notes):
    if 'start' in note:
      del history[note['start'] :]
    elif 'examples' in note:
      history.append(note['examples'])
  return history


def count_resumed(notes: pathlib.Path, kills: list[Kill], steps: int) -> int:
  """The number of kills after which the run resumed from the newest save.

  A start that was killed before it restored anything does not count; the one after it does. If
  there is none, the last kill came after the last save, and the next start found a finished run.
  """
  starts = []  # For each process, the step at which it started, or None if it was killed before.
  for note in files.read_jsonl(notes):
    if 'process' in note:
      starts.append(None)
    elif 'start' in note:
      starts[-1] = note['start']
  resumed = 0
  for number, kill in enumerate(kills):
    later = [start for start in starts[number + 1 :] if start is not None]
    resumed += (later[0] if later else steps) >= kill.newest_save
  return resumed


def prepare(folder: pathlib.Path, steps: int) -> None:
  """Builds the data and writes the config, if they do not exist."""
  from sphinx_jax import recipe, run
  from sphinx_jax.configs import mini
  from sphinx_jax.core import config as config_lib

  file = folder / 'config.json'
  if not file.exists():
    config = mini.get_config('quick')
    (folder / 'data').mkdir(parents=True, exist_ok=True)
    recipe.data_step(config, 'data', folder)
    stage = run.training_run(config, 'real', folder).copy_and_resolve_references()
    with stage.unlocked():
      stage.update(steps=steps, log_every=1, eval_every=10 * steps, init_from=None)
      stage.validation = {}
      stage.batch.update(size=2, seq_len=128, images=1, window=64)
      stage.checkpoint.update(every=2, keep=3, keep_every=0)
    file.write_text(config_lib.to_json(stage))
  (folder / 'config.py').write_text(
    'import pathlib\nfrom sphinx_jax.core import config\n\ndef get_config():\n'
    f'  return config.from_json(pathlib.Path({str(file)!r}).read_text())\n'
  )


def start(folder: pathlib.Path, name: str) -> subprocess.Popen:
  """Starts one of the two runs, 'whole' or 'broken'."""
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  command = [
    sys.executable,
    __file__,
    f'--hooked_train={folder / name}.notes',
    f'--config={folder}/config.py',
    f'--workdir={folder / name}',
  ]
  return subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=open(f'{folder / name}.log', 'a'),
  )


def finish(folder: pathlib.Path, name: str) -> float:
  """Starts a run and waits for its end. Returns the seconds."""
  began, process = time.monotonic(), start(folder, name)
  if code := process.wait():
    sys.exit(f'the run ended with code {code}; see {folder / name}.log')
  return time.monotonic() - began


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> bool:
  """Waits for a condition. Returns False if the process ended first."""
  while process.poll() is None:
    if condition():
      return True
    time.sleep(0.002)
  return False


def is_saving(folder: pathlib.Path) -> bool:
  """Whether there is an unfinished save of the broken run."""
  saves = folder / 'broken' / 'checkpoints'
  return saves.is_dir() and any('tmp' in path.name for path in saves.iterdir())


def newest_save(folder: pathlib.Path) -> int:
  """Step of the newest save of the broken run, or 0."""
  saves = folder.glob('broken/checkpoints/*')
  return max((int(path.name) for path in saves if path.name.isdigit()), default=0)


def start_and_kill(
  folder: pathlib.Path, draw: random.Random, seconds: dict[str, float], steps_per_kill: float
) -> Kill | None:
  """Starts the broken run and kills it. Returns None if the run finished before.

  Args:
    folder: the working directory of this test.
    draw: random numbers.
    seconds: time of a 'step' and of a 'start' up to its first step. The latter is updated.
    steps_per_kill: mean number of steps to the kill.
  """
  notes = folder / 'broken.notes'
  old_notes = notes.stat().st_size if notes.exists() else 0
  number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
  moment = draw.choice(['any moment', 'training', 'training', 'saving', 'saving'])
  process, began = start(folder, 'broken'), time.monotonic()

  if moment == 'any moment':
    delay = draw.uniform(0, seconds['start'] * 1.5)
  else:
    # Counted in steps, not in seconds, because the speed of the machine may change.
    target = draw.uniform(0, 2 * steps_per_kill)
    steps_done = lambda: notes.read_bytes()[old_notes:].count(b'examples') if notes.exists() else 0
    if wait_for(process, lambda: steps_done() > 0):
      seconds['start'] = time.monotonic() - began
    wait_for(process, lambda: steps_done() >= target)
    delay = draw.uniform(0, seconds['step'])
  deadline = time.monotonic() + delay
  if wait_for(process, lambda: time.monotonic() >= deadline) and moment == 'saving':
    wait_for(process, lambda: is_saving(folder))
    time.sleep(draw.uniform(0, 0.05))
  if process.poll() is not None:
    return None

  saving = is_saving(folder)
  process.send_signal(number)
  began, code = time.monotonic(), process.wait()
  return Kill(number.name, moment, code, saving, time.monotonic() - began, newest_save(folder))


def model_metrics(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
  """(step, name) -> value of every metric that depends on the model only."""
  from sphinx_jax.training import writer

  return {
    (line['step'], name): value
    for line in writer.read(workdir)
    for name, value in line.items()
    if name not in writer.MACHINE_METRICS
  }


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Differences between the two runs.

  Attributes:
    examples: number of examples of the uninterrupted run.
    lost: examples that only the uninterrupted run was trained on.
    repeated: examples that only the broken run was trained on.
    other_steps: steps with another batch.
    loss_difference: largest difference of a loss, or another metric of the model.
  """

  examples: int
  lost: int
  repeated: int
  other_steps: int
  loss_difference: float


def compare(folder: pathlib.Path) -> Comparison:
  whole, broken = (final_history(folder / f'{name}.notes') for name in ('whole', 'broken'))
  whole_count, broken_count = (
    collections.Counter(example for batch in history for example in batch)
    for history in (whole, broken)
  )
  whole_metrics, broken_metrics = model_metrics(folder / 'whole'), model_metrics(folder / 'broken')
  if whole_metrics.keys() != broken_metrics.keys():
    different = sorted(whole_metrics.keys() ^ broken_metrics.keys())
    sys.exit(f'the runs wrote different metrics: {different[:5]}')
  return Comparison(
    examples=whole_count.total(),
    lost=(whole_count - broken_count).total(),
    repeated=(broken_count - whole_count).total(),
    other_steps=sum(a != b for a, b in zip(whole, broken)) + abs(len(whole) - len(broken)),
    loss_difference=max(abs(whole_metrics[key] - broken_metrics[key]) for key in whole_metrics),
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True, help='a new directory')
  parser.add_argument('--kills', type=int, default=20, help='number of kills')
  parser.add_argument('--steps', type=int, default=60, help='number of updates of each run')
  parser.add_argument('--seed', type=int, default=0, help='seed of the kills')
  options = parser.parse_args()
  folder, draw = options.workdir.absolute(), random.Random(options.seed)
  if (folder / 'broken').exists():
    sys.exit(f'{folder} has the results of an earlier test; give another --workdir')

  prepare(folder, options.steps)
  if not (folder / 'whole').exists():
    print(f'uninterrupted run: {finish(folder, "whole"):.0f} s', flush=True)
  lines = files.read_jsonl(folder / 'whole' / 'metrics.jsonl')
  step_seconds = sum(1 / line['steps_per_second'] for line in lines) / len(lines)
  print(f'{options.steps} steps of {step_seconds:.2f} s', flush=True)

  seconds = {'step': step_seconds, 'start': 20.0}
  kills = []
  while len(kills) < options.kills:
    remaining_steps = options.steps - newest_save(folder)
    kill = start_and_kill(folder, draw, seconds, remaining_steps / (options.kills - len(kills) + 1))
    if kill is None:
      print('the run finished before the next kill; raise --steps', flush=True)
      break
    kills.append(kill)
    saving = ', during a save' if kill.saving else ''
    print(
      f'kill {len(kills)}: {kill.signal} ({kill.moment}{saving}), code {kill.code} after '
      f'{kill.seconds:.1f} s, newest save {kill.newest_save}',
      flush=True,
    )
  finish(folder, 'broken')

  result = compare(folder)
  resumed = count_resumed(folder / 'broken.notes', kills, options.steps)
  sigterm_seconds = [kill.seconds for kill in kills if kill.signal == 'SIGTERM']
  slowest_sigterm = max(sigterm_seconds, default=0)
  print(
    f'kills: {len(kills)} ({len(kills) - len(sigterm_seconds)} SIGKILL, '
    f'{len(sigterm_seconds)} SIGTERM; {sum(kill.saving for kill in kills)} during a save)'
  )
  print(f'slowest SIGTERM to exit: {slowest_sigterm:.1f} s')
  print(f'resumed: {resumed} of {len(kills)}')
  print(f'examples: {result.examples}')
  print(f'lost examples: {result.lost}')
  print(f'repeated examples: {result.repeated}')
  print(f'steps with another batch: {result.other_steps}')
  print(f'largest loss difference: {result.loss_difference}')
  is_equal = not (result.lost or result.repeated or result.other_steps or result.loss_difference)
  all_resumed = resumed == len(kills) == options.kills
  sys.exit(0 if is_equal and all_resumed and slowest_sigterm <= LONGEST_SIGTERM else 1)


if __name__ == '__main__':
  if len(sys.argv) > 1 and sys.argv[1].startswith('--hooked_train='):
    train_with_hook(sys.argv.pop(1).partition('=')[2])
  else:
    main()
