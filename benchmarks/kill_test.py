"""Kills one training run again and again and compares it with an unbroken one:

    python benchmarks/kill_test.py --workdir=/tmp/kill_test --kills=20

The model is that of configs/mini.py, on small batches, with a save every second step. Of the kills, drawn with --seed, some
are SIGTERM and the others kill -9; some come at any moment from the start of the process on, some while it trains, and some
while it saves. Each start is the same `python -m sphinx_jax.train`, with a hook that notes the hashes of the examples of
every batch that goes to the update. What the history of a run was trained on follows from these notes and from the step at
which each start really began.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
CLOCKS = (
  'second',
  'rss',
  'wait',
)  # Parts of names of metrics that measure the machine, not the model.


def child(notes):
  """The training door, with the hook: a line for the step it begins at, and one for the examples of each batch."""
  import xxhash

  from sphinx_jax.checkpoint import store
  from sphinx_jax.parallel import placement

  file, put, newest = open(notes, 'a', buffering=1), placement.put, store.Store.newest

  file.write(json.dumps({'process': os.getpid()}) + '\n')

  def noted_newest(self, *args):
    found = newest(self, *args)
    file.write(json.dumps({'start': found[2]['step'] if found else 0}) + '\n')
    return found

  def noted_put(batch, sharding):
    hashes = []
    for row in range(len(batch['tokens'])):
      pixels = batch['images'][row].tobytes()
      for segment in range(1, batch['segments'][row].max() + 1):
        text = batch['tokens'][row][batch['segments'][row] == segment].tobytes()
        hashes.append(xxhash.xxh3_64_hexdigest(text + pixels))
    file.write(json.dumps({'examples': hashes}) + '\n')
    return put(batch, sharding)

  store.Store.newest, placement.put = noted_newest, noted_put
  runpy.run_module('sphinx_jax.train', run_name='__main__')


def trained_on(notes):
  """Examples by step of the history that the run ended with."""
  history = []
  for line in map(json.loads, notes.read_text().splitlines()):
    if 'start' in line:
      del history[line['start'] :]
    elif 'examples' in line:
      history.append(line['examples'])
  return history


def resumed(notes, kills):
  """Number of kills after which the next start that came to its first step went on from the newest save there was."""
  starts = []  # Of each process: the step it began at, or None where it was killed before.
  for line in map(json.loads, notes.read_text().splitlines()):
    if 'process' in line:
      starts.append(None)
    elif 'start' in line:
      starts[-1] = line['start']
  there = [kill['left'] for kill in kills]  # The newest save when a kill was over.
  return sum(
    next(start for start in starts[number + 1 :] if start is not None) >= left
    for number, left in enumerate(there)
  )


def prepare(folder, steps):
  """Data and config, made once."""
  from sphinx_jax import recipe, run
  from sphinx_jax.configs import mini
  from sphinx_jax.core import config as config_lib

  file = folder / 'config.json'
  if not file.exists():
    config = mini.get_config('quick').copy_and_resolve_references()
    (folder / 'data').mkdir(parents=True, exist_ok=True)
    recipe.data_step(config.lock(), 'data', folder)
    stage = run.training_run(config, 'real', folder).copy_and_resolve_references()
    with stage.unlocked():
      stage.update(steps=steps, log_every=1, eval_every=10 * steps)
      stage.validation = {}
      stage.batch.update(size=2, seq_len=128, images=1, window=64)
      stage.checkpoint.update(every=2, keep=3, keep_every=0)
    file.write_text(config_lib.to_json(stage))
  (folder / 'config.py').write_text(
    'import pathlib\nfrom sphinx_jax.core import config\ndef get_config():\n'
    f'  return config.from_json(pathlib.Path({str(file)!r}).read_text())\n'
  )


def start(folder, name):
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),
    'PYTHONPATH': str(ROOT),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  return subprocess.Popen(
    [
      sys.executable,
      __file__,
      f'--child={folder / name}.notes',
      f'--config={folder}/config.py',
      f'--workdir={folder / name}',
    ],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=open(f'{folder / name}.log', 'a'),
  )


def finish(folder, name):
  began, process = time.monotonic(), start(folder, name)
  if code := process.wait():
    sys.exit(f'the run ended with code {code}; see {folder / name}.log')
  return time.monotonic() - began


def wait_for(process, happened):
  """Whether it happened before the process ended."""
  while process.poll() is None:
    if happened():
      return True
    time.sleep(0.002)
  return False


def kill(folder, draw, seconds, remaining):
  """Starts the broken run and kills it; returns what was done, or None where the run finished first."""
  notes, saves = pathlib.Path(f'{folder}/broken.notes'), folder / 'broken' / 'checkpoints'
  before = notes.stat().st_size if notes.exists() else 0
  number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
  kind = draw.choice(['any moment', 'training', 'training', 'saving', 'saving'])
  process = start(folder, 'broken')
  if kind == 'any moment':
    delay = draw.uniform(0, seconds['start'] * 1.5)
  else:
    began = time.monotonic()
    if wait_for(process, lambda: notes.exists() and b'examples' in notes.read_bytes()[before:]):
      seconds['start'] = time.monotonic() - began
    # On average as many steps as are left for each of the kills that are left.
    delay = draw.uniform(0, 2 * seconds['step'] * remaining)
  if (
    wait_for(process, lambda until=time.monotonic() + delay: time.monotonic() >= until)
    and kind == 'saving'
  ):
    wait_for(
      process, lambda: saves.is_dir() and any('tmp' in path.name for path in saves.iterdir())
    )
    time.sleep(draw.uniform(0, 0.05))
  if process.poll() is not None:
    return None
  under_way = saves.is_dir() and any('tmp' in path.name for path in saves.iterdir())
  process.send_signal(number)
  began, code = time.monotonic(), process.wait()
  return {
    'signal': number.name,
    'kind': kind,
    'code': code,
    'saving': under_way,
    'seconds': time.monotonic() - began,
    'left': newest(folder),
  }


def newest(folder):
  """The newest save of the broken run, or 0."""
  return max(
    (int(path.name) for path in folder.glob('broken/checkpoints/*') if path.name.isdigit()),
    default=0,
  )


def compare(folder):
  """(lost examples, repeated examples, steps with other batches, largest difference of a loss)."""
  from sphinx_jax.training import writer

  whole, broken = (
    trained_on(pathlib.Path(f'{folder}/{name}.notes')) for name in ('whole', 'broken')
  )
  counts = [
    collections.Counter(example for batch in run for example in batch) for run in (whole, broken)
  ]
  lost, repeated = sum((counts[0] - counts[1]).values()), sum((counts[1] - counts[0]).values())
  other = sum(a != b for a, b in zip(whole, broken)) + abs(len(whole) - len(broken))
  values = [
    {
      (line['step'], name): value
      for line in writer.read(folder / name)
      for name, value in line.items()
      if not any(clock in name for clock in CLOCKS)
    }
    for name in ('whole', 'broken')
  ]
  if values[0].keys() != values[1].keys():
    sys.exit(f'the runs wrote other lines: {sorted(values[0].keys() ^ values[1].keys())[:5]}')
  return (
    lost,
    repeated,
    other,
    max(abs(values[0][key] - values[1][key]) for key in values[0]),
    sum(counts[0].values()),
  )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  folder, draw = options.workdir.absolute(), random.Random(options.seed)
  if (folder / 'broken').exists():
    sys.exit(f'{folder} holds an earlier test; give another --workdir')
  prepare(folder, options.steps)
  if not (folder / 'whole').exists():
    print(f'unbroken run: {finish(folder, "whole"):.0f} s', flush=True)
  lines = [
    json.loads(line) for line in (folder / 'whole' / 'metrics.jsonl').read_text().splitlines()
  ]
  step = sum(1 / line['steps_per_second'] for line in lines) / len(lines)
  print(f'{options.steps} steps of {step:.2f} s', flush=True)
  seconds = {
    'step': step,
    'start': 20.0,
  }  # Of a start whose programs are compiled; measured along the way.
  done = []
  while len(done) < options.kills:
    found = kill(
      folder, draw, seconds, (options.steps - newest(folder)) / (options.kills - len(done) + 1)
    )
    if found is None:
      print('the run finished before the next kill; raise --steps', flush=True)
      break
    done.append(found)
    print(
      f'kill {len(done)}: {found["signal"]} ({found["kind"]}{", a save under way" if found["saving"] else ""}), '
      f'code {found["code"]} after {found["seconds"]:.1f} s, newest save {found["left"]}',
      flush=True,
    )
  finish(folder, 'broken')
  lost, repeated, other, difference, examples = compare(folder)
  terminated = [kill for kill in done if kill['signal'] == 'SIGTERM']
  print(
    f'kills: {len(done)} ({len(done) - len(terminated)} kill -9, {len(terminated)} SIGTERM; '
    f'{sum(kill["saving"] for kill in done)} with a save under way)'
  )
  print(
    f'slowest SIGTERM to exit: {max((kill["seconds"] for kill in terminated), default=0):.1f} s'
  )
  went_on = resumed(pathlib.Path(f'{folder}/broken.notes'), done)
  print(f'resumed: {went_on} of {len(done)}')
  print(
    f'examples: {examples}\nlost examples: {lost}\nrepeated examples: {repeated}\nsteps with another batch: {other}'
  )
  print(f'largest loss difference: {difference}')
  late = [kill for kill in terminated if kill['seconds'] > 30]
  sys.exit(
    bool(
      lost
      or repeated
      or other
      or difference
      or late
      or went_on < len(done)
      or len(done) < options.kills
    )
  )


if __name__ == '__main__':
  if sys.argv[1:] and sys.argv[1].startswith('--child='):
    child(sys.argv.pop(1).partition('=')[2])
  else:
    main()
