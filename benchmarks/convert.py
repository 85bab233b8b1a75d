"""Takes a synthetic official release in and out, beside copying the same bytes: `python -m benchmarks.convert`.

A folder of random bfloat16 tensors in 2 shards, with 7B's widths and as many decoder layers as make the size, is
converted to a checkpoint of ours and back to 2 shards. Copies are timed before and after each step, with the same page
cache. Needs about 4 times the size on disk under --workdir.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zlib

import ml_dtypes
import numpy as np
from absl import flags

from sphinx_jax.checkpoint.foreign import pth, pth_writer, shards
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import cli
from sphinx_jax.data import tokenizer as tokenizers
from sphinx_jax.models import variants as official
from sphinx_jax.models.encoders import convnext, dinov2
from sphinx_jax.models.llms import llama

FLAGS = flags.FLAGS
_SHARDS = 2
_VOCAB = 512


def release(folder: pathlib.Path, gigabytes: float) -> None:
  """Writes the synthetic folder, one tensor in memory at a time."""
  encoders = {
    'convnext': {**convnext.SIZES['xxlarge'], 'depths': (1, 1, 2, 1)},
    'dinov2': {**dinov2.SIZES['ViT-g-14'], 'layers': 4},
  }
  llm = {**llama.SIZES['7b'], 'vocab': _VOCAB}

  def shapes(layers):
    return official.shapes(official.model('llama_ens_light', {**llm, 'layers': layers}, encoders))

  def size(found):
    return sum(
      2 * math.prod(shape) * (_SHARDS if shards.parallel_dim(key) is None else 1)
      for key, shape in found.items()
    )

  one, two = size(shapes(1)), size(shapes(2))
  layers = max(1, round((gigabytes * 1e9 - one) / (two - one)) + 1)
  found = {
    f'llma.{key}': Tensor(
      shape, np.dtype(ml_dtypes.bfloat16), lambda key=key, shape=shape: _random(key, shape)
    )
    for key, shape in shapes(layers).items()
  }
  folder.mkdir(parents=True)
  for rank, part in enumerate(shards.split(found, _SHARDS)):
    pth_writer.write_pth(folder / f'consolidated.{rank:02d}-of-{_SHARDS:02d}.model.pth', part)
  (folder / 'config.json').write_text(json.dumps(official.LLM.config({**llm, 'layers': layers})))
  (folder / 'meta.json').write_text(json.dumps({'llama_type': 'llama_ens_light'}))
  words = [' '.join(f'{a}{b}{c}' for a in 'abcdefgh' for b in 'aeiou' for c in 'klmnopqrst')]
  (folder / 'tokenizer.model').write_bytes(tokenizers.train(words, _VOCAB))


def _random(key: str, shape: tuple[int, ...]) -> np.ndarray:
  rng = np.random.default_rng(zlib.crc32(key.encode()))
  return (rng.integers(0, 2**15, shape, np.uint16) & 0xBFFF).view(
    ml_dtypes.bfloat16
  )  # Finite numbers of all sizes.


def timed(*arguments: str) -> tuple[float, float]:
  """Runs the door in its own process: (seconds from start to exit, peak resident memory in GiB)."""
  start = time.monotonic()
  process = subprocess.Popen([sys.executable, '-m', 'sphinx_jax.convert', *arguments])
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f'convert {" ".join(arguments)} failed')
  return time.monotonic() - start, usage.ru_maxrss / 2**20


def copied(source: pathlib.Path, target: pathlib.Path) -> float:
  """Seconds that `cp -r` takes."""
  shutil.rmtree(target, ignore_errors=True)
  start = time.monotonic()
  subprocess.run(['cp', '-r', str(source), str(target)], check=True)
  seconds = time.monotonic() - start
  shutil.rmtree(target)
  return seconds


def equal(first: pathlib.Path, second: pathlib.Path) -> bool:
  """Whether the shards of two folders hold the same tensors, to the last bit."""
  for file in sorted(first.glob('*.pth')):
    a, b = pth.open_pth(file), pth.open_pth(second / file.name)
    same = lambda key: (
      a[key].dtype == b[key].dtype and a[key].read().tobytes() == b[key].read().tobytes()
    )
    if a.keys() != b.keys() or not all(map(same, a)):
      return False
  return True


def main() -> None:
  work = pathlib.Path(FLAGS.workdir)
  official_folder, ours, back = work / 'official', work / 'ours', work / 'back'
  shutil.rmtree(work, ignore_errors=True)
  print('making the synthetic release ...', flush=True)
  release(official_folder, FLAGS.gigabytes)
  size = lambda folder: (
    sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e9
  )
  rows = []
  for name, source, target, extra in (
    ('official -> ours', official_folder, ours, []),
    ('ours -> official', ours, back, ['--to=official', f'--shards={_SHARDS}']),
  ):
    copies = [copied(source, work / 'copy')]
    seconds, memory = timed(f'--source={source}', f'--output={target}', *extra)
    copies.append(copied(source, work / 'copy'))
    copies.append(copied(target, work / 'copy'))
    rows.append((name, size(source), size(target), seconds, sum(copies) / len(copies), memory))
  print(
    f'{"":<18}{"GB read":>9}{"GB written":>12}{"seconds":>9}{"copy":>7}{"ratio":>7}{"GB/s":>7}{"peak GiB":>10}'
  )
  for name, read, written, seconds, copy, memory in rows:
    print(
      f'{name:<18}{read:>9.2f}{written:>12.2f}{seconds:>9.1f}{copy:>7.1f}{seconds / copy:>7.2f}{written / seconds:>7.2f}'
      f'{memory:>10.2f}'
    )
  opened = shards.open_sets(official_folder)['official']
  largest = max(tensor.nbytes for tensor in shards.merge(opened, print).values())
  print(
    f'largest tensor {largest / 2**20:.0f} MiB: promised are 2 GiB + twice that; '
    f'there and back is bit-equal: {"yes" if equal(official_folder, back) else "NO"}'
  )
  shutil.rmtree(work)


if __name__ == '__main__':
  flags.DEFINE_float(
    'gigabytes', 4.0, 'Size of the synthetic release, both shards together.', lower_bound=0.5
  )
  flags.DEFINE_string(
    'workdir', 'workdir/convert_benchmark', 'Where the files lie; emptied before and removed after.'
  )
  cli.run(main)
