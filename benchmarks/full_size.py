"""Converts and asks an Idefics2 of the released size: `nice python -m benchmarks.full_size`.

A folder in the released layout with random bfloat16 weights (16.8 GB) is written, asked about an
image as it is, converted to a checkpoint and back. The bits of every tensor are compared. Every
phase is a process of its own; its seconds and its peak memory are printed. It needs twice the size
on disk under --workdir, and the memory of the weights plus 2 GB.
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zlib

import ml_dtypes
import numpy as np
import psutil
import xxhash
from absl import flags
from sentencepiece import sentencepiece_model_pb2

from sphinx_jax.checkpoint.foreign import safetensors
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import cli, text, trees
from sphinx_jax.data import tokenizer as tokenizers
from sphinx_jax.models import families, forms, idefics2

FLAGS = flags.FLAGS
_SPECIALS = ('<fake_token_around_image>', '<image>', '<end_of_utterance>')


def release(folder: pathlib.Path, layers: int | None) -> dict[str, str]:
  """Writes the folder, one shard in memory at a time.

  Args:
    folder: is made.
    layers: layers of each part; None: as released.

  Returns:
    Tensor name -> hash of its bits.
  """
  config = idefics2.full_size()
  for part in (config.vision, config.perceiver, config.llm):
    part.layers = layers or part.layers
  shapes = trees.flatten(families.abstract_params(config))
  found = {}

  def make(key: str, shape: tuple[int, ...]) -> np.ndarray:
    value = _random(key, shape)
    found[key] = _hash(value)
    return value

  tensors = {}
  for weight in idefics2.weights(config):
    shape = weight.foreign_shape(shapes[weight.path].shape)
    for _, key in weight.places():
      read = functools.partial(make, key, shape)
      tensors[key] = Tensor(shape, np.dtype(ml_dtypes.bfloat16), read)
  print(f'{len(tensors)} tensors, {trees.nbytes(tensors) / 1e9:.2f} GB', flush=True)
  safetensors.write_safetensors(folder, tensors)
  form = forms.whole(config)
  settings = {**form.config(config), 'torch_dtype': 'bfloat16'}
  beside = {name: settings.pop(name) for name in form.beside}
  added = {token: 32000 + number for number, token in enumerate(_SPECIALS)}
  for name, content in {'config.json': settings, 'added_tokens.json': added, **beside}.items():
    (folder / name).write_text(json.dumps(content, indent=2))
  (folder / 'tokenizer.model').write_bytes(_tokenizer(32000))
  return found


def _random(key: str, shape: tuple[int, ...]) -> np.ndarray:
  """Values of one tensor. All of them repeat one block, which saves time."""
  # A copy, as a view would keep the whole block.
  values = np.resize(np.roll(_block(), zlib.crc32(key.encode())), shape).copy()
  return values + 1 if 'norm' in key and key.endswith('.weight') else values


@functools.cache
def _block() -> np.ndarray:
  values = np.random.default_rng(0).standard_normal((1 << 24) + 1, np.float32)
  return (values * 0.02).astype(ml_dtypes.bfloat16)


def _tokenizer(size: int) -> bytes:
  """A small tokenizer with pieces added that no text becomes."""
  words = [' '.join(f'{a}{b}{c}' for a in 'abcdefgh' for b in 'aeiou' for c in 'klmnopqrst')]
  model = sentencepiece_model_pb2.ModelProto()
  model.ParseFromString(tokenizers.train(words, 512))
  for number in range(len(model.pieces), size):
    model.pieces.add(piece=f'\u2581[{number}]', score=-number)
  return model.SerializeToString()


def _hash(value: np.ndarray) -> str:
  return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(value).view(np.uint8))


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """Returns tensor name -> hash of its bits."""
  opened = safetensors.open_safetensors(folder)
  return {key: _hash(tensor.read()) for key, tensor in opened.items()}


def ask(folder: pathlib.Path) -> None:
  """Prints the seconds of loading, and of 16 tokens about an image of 378 pixels."""
  import sphinx_jax

  start = time.monotonic()
  model = sphinx_jax.load(folder)
  kinds = {str(leaf.dtype) for leaf in trees.flatten(model.params).values()}
  resident = psutil.Process().memory_info().rss / 2**30
  seconds = time.monotonic() - start
  print(f'loaded in {seconds:.0f} s: {", ".join(kinds)}, {resident:.1f} GiB', flush=True)
  image = np.random.default_rng(0).integers(0, 256, (378, 378, 3), np.uint8)
  start = time.monotonic()
  model.chat([('<image>What is this?', None)], image, max_new_tokens=16)
  print(f'16 tokens, with compilation: {time.monotonic() - start:.0f} s', flush=True)


def phase(name: str, *command: str) -> tuple[str, str, str]:
  """Runs a command; returns a row of name, seconds and peak resident memory in GiB."""
  print(f'{name} ...', flush=True)
  start = time.monotonic()
  # If memory ends, the kernel ends this process, and not another one.
  script = f'echo 1000 > /proc/self/oom_score_adj; exec {sys.executable} -m {" ".join(command)}'
  process = subprocess.Popen(['sh', '-c', script])
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if status:
    raise SystemExit(f'{name}: failed with {process.returncode}')
  return name, f'{time.monotonic() - start:.0f}', f'{usage.ru_maxrss / 2**20:.1f}'


def main() -> None:
  work = pathlib.Path(FLAGS.workdir)
  if FLAGS.phase:
    folder = work / FLAGS.folder
    if FLAGS.phase == 'ask':
      ask(folder)
      return
    found = release(folder, FLAGS.layers) if FLAGS.phase == 'write' else hashes(folder)
    (work / f'{FLAGS.folder}.json').write_text(json.dumps(found))
    return
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir(parents=True)
  own = ['benchmarks.full_size', f'--workdir={work}']
  layers = [f'--layers={FLAGS.layers}'] if FLAGS.layers else []
  released, ours, back = (work / name for name in ('released', 'ours', 'back'))
  convert = 'sphinx_jax.convert'
  rows = [('phase', 'seconds', 'peak GiB')]
  for name, *command in (
    ('write the folder', *own, '--phase=write', '--folder=released', *layers),
    ('load it and answer', *own, '--phase=ask', '--folder=released'),
    ('convert', convert, f'--source={released}', f'--output={ours}'),
    ('convert back', convert, f'--source={ours}', f'--output={back}', '--to=hf'),
    ('hash its tensors', *own, '--phase=hash', '--folder=back'),
  ):
    if name == 'convert back':
      shutil.rmtree(released)  # There may be no room for a third copy.
    rows.append(phase(name, *command))
    print(*rows[-1], flush=True)
  first, second = (json.loads((work / f'{name}.json').read_text()) for name in ('released', 'back'))
  print(text.table(rows, 'lrr'))
  print(f'{len(first)} tensors, bit-equal there and back: {"yes" if first == second else "NO"}')
  shutil.rmtree(work)


if __name__ == '__main__':
  flags.DEFINE_integer('layers', None, 'Layers of each part, for a trial.', lower_bound=1)
  flags.DEFINE_string('workdir', 'workdir/full_size', 'Folder of the files; emptied and removed.')
  flags.DEFINE_enum('phase', None, ['write', 'hash', 'ask'], 'One phase alone; used by the script.')
  flags.DEFINE_string('folder', None, 'Folder of that phase.')
  cli.run(main)
