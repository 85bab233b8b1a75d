"""Measures this project on the accelerator of this machine; needs no weights and no data.

    bash benchmarks/accelerator.sh --output=DIR

Prints a table and writes it to DIR/results.json with the name of the device; DIR/PART.log has what
a part printed. Without a GPU or TPU, or with --tiny, everything runs at tiny size, which shows that
it runs and no more. Weights are random. The parts:

    device     what the others run on
    tests      the tests that need a GPU (cuDNN attention)
    data       images a second from files to batches, on this machine's cores
    encoders   forward pass of the four encoders of SPHINX
    decode     7B language model, batches of 1, 8 and 64, beside the bandwidth of a copy
    update_1b  update of a SPHINX with images, packed rows, bfloat16, as `train` compiles it
    update_7b  the same at 7B. Trained are all weights but the encoders', with moments in float32 or
               the first in bfloat16, or the projections alone: the first that fits into the memory
               by the planner's estimate and by the compiler's figure
    lora_7b    the same with adapters of rank 16, all else frozen in bfloat16
    qlora_7b   the same with all else frozen in nf4

A part that fails or does not end in time is in the table, and the others go on; the exit code is
then 1. MFU counts the products of the model once, without recomputed ones and without the gradients
of frozen weights. Aims hold for an H100-class GPU at full size.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from benchmarks.accelerator import table
from sphinx_jax.core import cli, errors, files, paths, text
from sphinx_jax.core.progress import log

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parents[2]
# Part -> seconds that are kept for it, of 8 minutes. What it leaves, the later ones may take.
SECONDS = {
  'device': 20,
  'tests': 45,
  'data': 30,
  'encoders': 65,
  'decode': 65,
  'update_1b': 70,
  'update_7b': 75,
  'lora_7b': 55,
  'qlora_7b': 55,
}
RESULTS = 'results.json'


def run_part(name: str, folder: pathlib.Path) -> None:
  """Runs a part in this process and writes its rows, each as soon as it is there."""
  from benchmarks.accelerator import parts

  sizes = table.TINY if FLAGS.tiny else table.FULL
  with open(folder / f'{name}.jsonl', 'w') as file:
    for row in parts.PARTS[name](sizes._replace(attention=FLAGS.attention)):
      print(json.dumps(row._asdict()), file=file, flush=True)


def measure(name: str, command: Sequence[str], folder: pathlib.Path, seconds: float) -> dict:
  """Runs the process of a part.

  Args:
    name: of the part.
    command: writes rows to NAME.jsonl in the folder.
    folder: gets NAME.log, too.
    seconds: after them the process and its children are killed.

  Returns:
    `rows`, each a dictionary of `table.Row`, `problem` ('' for none) and `seconds`.
  """
  began, log_file, rows = time.monotonic(), folder / f'{name}.log', folder / f'{name}.jsonl'
  rows.unlink(missing_ok=True)  # Of an interrupted call.
  # JAX takes 75 % of a GPU's memory, unless it is told otherwise.
  environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95'} | os.environ
  with open(log_file, 'w') as output:
    process = subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    try:
      code = process.wait(max(seconds, 0))
      problem = f'exit code {code}: {_last_line(log_file)}' if code else ''
    except subprocess.TimeoutExpired:
      problem = f'did not end in {seconds:.0f} s'
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
  done = files.read_jsonl(rows, drop_partial=True) if rows.exists() else []
  return {'rows': done, 'problem': problem, 'seconds': time.monotonic() - began}


def _last_line(file: pathlib.Path) -> str:
  lines = file.read_text(errors='replace').strip().splitlines()
  return text.one_line(lines[-1], 120) if lines else 'it printed nothing'


def measure_all(
  names: Sequence[str], folder: pathlib.Path, tiny: bool, minutes: float, options: Sequence[str]
) -> tuple[dict[str, dict], bool]:
  """Runs parts one after the other and writes results.json after each.

  Args:
    names: of the parts, the device first; nothing else runs if that fails.
    folder: of the results.
    tiny: whether sizes are tiny in any case.
    minutes: limit of all parts together.
    options: flags of every part.

  Returns:
    Name -> result of `measure`, and whether sizes were tiny.
  """
  end, scale, parts = time.monotonic() + 60 * minutes, minutes / 8, {}
  for number, name in enumerate(names):
    later = scale * sum(SECONDS[other] for other in names[number + 1 :])
    command = [sys.executable, '-m', 'benchmarks.accelerator', f'--part={name}', *options]
    command += [f'--output={folder}', f'--tiny={tiny}']
    parts[name] = measure(name, command, folder, end - later - time.monotonic())
    log.info('%s: %.0f s %s', name, parts[name]['seconds'], parts[name]['problem'])
    if parts['device']['problem']:
      break
    device, jax_version = parts['device']['rows'][:2]
    tiny = tiny or device['note'] == 'cpu'
    found = {'device': device['value'], 'jax': jax_version['value'], 'tiny': tiny, 'parts': parts}
    files.write_json(folder / RESULTS, found)
  return parts, tiny


def main() -> None:
  """Runs one part in this process, or all in processes of their own."""
  folder = pathlib.Path(FLAGS.output).absolute()
  if FLAGS.part:
    run_part(FLAGS.part, folder)
    return
  for name in FLAGS.only:
    if name not in SECONDS:
      raise errors.unknown('--only', name, SECONDS)
  if (folder / RESULTS).exists():
    raise errors.make(
      f"output '{folder}'", f'a folder with {RESULTS}', 'a new folder', 'give another --output'
    )
  paths.make_folder(folder, 'output')
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # And ends the part.
  names = [name for name in SECONDS if name == 'device' or name in (FLAGS.only or SECONDS)]
  options = [f'--cache={FLAGS.cache}']
  options += [f'--attention={FLAGS.attention}'] if FLAGS.attention else []
  parts, tiny = measure_all(names, folder, FLAGS.tiny, FLAGS.minutes, options)
  print(table.formatted(parts, tiny))
  if tiny:
    print('Tiny sizes: these numbers only show that everything runs.')
  if any(part['problem'] for part in parts.values()):
    raise SystemExit(1)


if __name__ == '__main__':
  cli.define_path(
    'output', None, f'New folder for {RESULTS} and the logs of the parts.', required=True
  )
  flags.DEFINE_list('only', [], f'Parts to run, of {", ".join(SECONDS)}. Default: all.')
  flags.DEFINE_bool('tiny', False, 'Tiny sizes, as without an accelerator.')
  flags.DEFINE_float('minutes', 8.0, 'Limit of all parts together.', lower_bound=0)
  flags.DEFINE_string(
    'attention', None, 'Kernel of the update. Default: cudnn on a GPU, auto elsewhere.'
  )
  flags.DEFINE_string('part', None, 'Internal: run this part in this process.')
  cli.run(main)
