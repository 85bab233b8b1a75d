"""Times mixing checkpoints, against `cp` and mergekit: `python -m benchmarks.mix`.

The tensors are random bfloat16 of a LLaMA of 7B's widths with as many layers as make the size: two
inputs and a base. In every round each method is run by sphinx_jax and then by mergekit, on the same
tensors as safetensors. mergekit gets an environment of its own beside --workdir, because it needs
other versions than sphinx_jax. Around a linear mix, `cp` of the output plus `cat` of both inputs is
timed, with the same page cache.

Times are from the start of a process to its exit; the start-up is that of a mix of a few numbers.
CPU seconds are of all threads, and change less than others while programs share the machine. The
benchmark needs 5 times the size on disk under --workdir, and 9 times with mergekit.
"""

import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
import venv
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import safetensors
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import cli, trees
from sphinx_jax.mix import methods
from sphinx_jax.models import families, variants
from sphinx_jax.models.llms import llama

FLAGS = flags.FLAGS
_COEFFICIENTS = (0.3, 0.7)
_DENSITY = 0.5
_MERGEKIT = ('mergekit==0.1.5', 'torch==2.13.0')
_INPUTS, _BASE = ('first', 'second'), 'base'
_DTYPE = np.dtype(ml_dtypes.bfloat16)
_NAMES = {
  'attention/wq/kernel': 'self_attn.q_proj',
  'attention/wk/kernel': 'self_attn.k_proj',
  'attention/wv/kernel': 'self_attn.v_proj',
  'attention/wo/kernel': 'self_attn.o_proj',
  'feed_forward/w1/kernel': 'mlp.gate_proj',
  'feed_forward/w3/kernel': 'mlp.up_proj',
  'feed_forward/w2/kernel': 'mlp.down_proj',
  'attention_norm/scale': 'input_layernorm',
  'ffn_norm/scale': 'post_attention_layernorm',
  'llm/embed': 'model.embed_tokens',
  'llm/norm/scale': 'model.norm',
  'llm/output/kernel': 'lm_head',
}


class Timing(NamedTuple):
  """What a process took: seconds from its start to its exit, CPU seconds, peak GiB."""

  seconds: float
  cpu: float
  gib: float


def config(layers: int, **settings: int) -> ConfigDict:
  """Returns the model config of a language model of 7B's widths."""
  return variants.language_model({**llama.SIZES['7b'], 'layers': layers, **settings}, str(_DTYPE))


def layers_of(gigabytes: float) -> int:
  """Returns how many layers make the size, at least 2."""
  one, two = (trees.count(families.abstract_params(config(count))) for count in (1, 2))
  return max(2, round((gigabytes * 1e9 / _DTYPE.itemsize - one) / (two - one)) + 1)


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns bfloat16 numbers of the size of weights, cheap to draw."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  return ((rng.integers(0, 2**15, shape, np.uint16) & 0x81FF) | 0x3C00).view(_DTYPE)


def write_ours(folder: pathlib.Path, model: ConfigDict) -> None:
  """Writes a checkpoint of sphinx_jax, one layer in memory at a time."""
  stacked = families.stacked(model)
  arrays = {
    path: stream.Array(leaf.shape, _DTYPE, None, leaf.shape[0] if stacked[path] else 1)
    for path, leaf in trees.flatten(families.abstract_params(model)).items()
  }
  meta = {'config': ConfigDict({'model': model}).to_json(), 'tokenizer': None, 'dialog': {}}
  writer = stream.Writer(folder, {'params': arrays}, meta)
  for path, array in arrays.items():
    for index in np.ndindex(*array.shape[: stacked[path]]):
      value = _random(f'{folder.name} {path} {index}', array.shape[stacked[path] :])
      writer.write('params', path, value, index)
  writer.finish()


def foreign_name(path: str, index: Sequence[int]) -> str:
  """Returns the name of transformers of a parameter, or of a layer of it."""
  if not index:
    return f'{_NAMES[path]}.weight'
  return f'model.layers.{index[0]}.{_NAMES[path.removeprefix("llm/layers/")]}.weight'


def layer_indices(path: str, array: stream.Array) -> list[tuple[int, ...]]:
  """Returns the indices of the tensors that a parameter has for transformers."""
  return list(np.ndindex(*(array.shape[:1] if path.startswith('llm/layers/') else ())))


def write_safetensors(source: pathlib.Path, folder: pathlib.Path, model: ConfigDict) -> None:
  """Writes the same tensors under the names of transformers, with a config for mergekit."""
  tensors = {}
  for path, array in stream.read(source).items():
    for index in layer_indices(path, array):
      shape = array.shape[len(index) :]
      tensors[foreign_name(path, index)] = Tensor(
        shape, _DTYPE, lambda array=array, index=index: array.read(index)
      )
  folder.mkdir(parents=True)
  safetensors.write_safetensors(folder, tensors)
  (folder / 'config.json').write_text(
    json.dumps(
      {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'hidden_size': model.llm.width,
        'intermediate_size': 11008,
        'num_hidden_layers': model.llm.layers,
        'num_attention_heads': 32,
        'num_key_value_heads': 32,
        'vocab_size': model.llm.vocab,
        'torch_dtype': 'bfloat16',
        'tie_word_embeddings': False,
      }
    )
  )


def timed(*command: str) -> Timing:
  """Runs a process to its end."""
  start = time.monotonic()
  process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=None if FLAGS.verbose else subprocess.DEVNULL
  )
  peak = 0.0
  while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
    peak = max(peak, _peak_gib(process.pid))
    time.sleep(0.02)
  _, status, usage = ended
  process.returncode = os.waitstatus_to_exitcode(status)
  if status:
    raise SystemExit(f'{" ".join(command)} failed; --verbose shows its output')
  return Timing(time.monotonic() - start, usage.ru_utime + usage.ru_stime, peak)


def _peak_gib(pid: int) -> float:
  """Peak memory of a process so far. ru_maxrss would start at that of this process."""
  found = re.search(r'VmHWM:\s+(\d+) kB', pathlib.Path(f'/proc/{pid}/status').read_text())
  return int(found[1]) / 2**20 if found else 0.0


def copy_and_read(work: pathlib.Path) -> Timing:
  """Times `cp` of a checkpoint as large as the mix, plus `cat` of both inputs."""
  inputs, copy = [str(work / name) for name in _INPUTS], work / 'copy'
  copying = timed('cp', '-r', inputs[0], str(copy))
  shutil.rmtree(copy)
  reading = timed('sh', '-c', f'find {" ".join(inputs)} -type f -print0 | xargs -0 cat')
  return Timing(copying.seconds + reading.seconds, copying.cpu + reading.cpu, 0)


def mix(work: pathlib.Path, method: str, output: pathlib.Path) -> Timing:
  """Times a mix by sphinx_jax."""
  shutil.rmtree(output, ignore_errors=True)
  row = methods.METHODS[method]
  return timed(
    sys.executable,
    '-m',
    'sphinx_jax.mix_weights',
    f'--inputs={",".join(str(work / name) for name in _INPUTS)}',
    f'--output={output}',
    f'--coefficients={",".join(map(str, _COEFFICIENTS))}',
    f'--method={method}',
    *([f'--base={work / _BASE}'] if row.base == 'required' else []),
    *([f'--density={_DENSITY}'] if 'density' in row.options else []),
  )


def merge(work: pathlib.Path, method: str, output: pathlib.Path, program: pathlib.Path) -> Timing:
  """Times a merge by mergekit, with the same method and parameters."""
  shutil.rmtree(output, ignore_errors=True)
  has_base = methods.METHODS[method].base == 'required'
  places = {name: str(work / f'{name}_hf') for name in (*_INPUTS, _BASE)}
  settings = {'merge_method': method, 'dtype': 'bfloat16'}
  if method == 'slerp':
    settings |= {'base_model': places[_INPUTS[0]], 'parameters': {'t': _COEFFICIENTS[1]}}
  elif has_base:
    settings |= {'base_model': places[_BASE]}
  density = {'density': _DENSITY} if has_base else {}
  weights = [{} if method == 'slerp' else {'weight': c, **density} for c in _COEFFICIENTS]
  settings['models'] = [
    {'model': places[name], 'parameters': parameters} for name, parameters in zip(_INPUTS, weights)
  ]
  recipe = work / 'merge.json'  # JSON is YAML.
  recipe.write_text(json.dumps(settings))
  return timed(str(program), str(recipe), str(output), '--no-copy-tokenizer')


def mergekit(work: pathlib.Path) -> pathlib.Path:
  """Returns the program of mergekit, in an environment that is made if absent."""
  home = pathlib.Path(FLAGS.mergekit or work.parent / 'mergekit_venv')
  if not (home / 'bin' / 'mergekit-yaml').exists():
    print('installing mergekit ...', flush=True)
    venv.create(home, with_pip=True)
    subprocess.run([str(home / 'bin' / 'pip'), 'install', '-q', *_MERGEKIT], check=True)
  return home / 'bin' / 'mergekit-yaml'


def differences(merged: pathlib.Path, mixed: pathlib.Path) -> str:
  """Describes how many numbers differ, and by how many steps of bfloat16 at most."""
  merged_tensors = safetensors.open_safetensors(merged)
  different, total, largest = 0, 0, 0
  for path, array in stream.read(mixed).items():
    for index in layer_indices(path, array):
      ours = array.read(index).view(np.int16).astype(np.int32)
      theirs = merged_tensors[foreign_name(path, index)].read().view(np.int16)
      steps = np.abs(ours - theirs)
      different += np.count_nonzero(steps)
      total += steps.size
      largest = max(largest, int(steps.max()))
  return f'{different} of {total} numbers differ, by at most {largest} steps of bfloat16'


def medians(timings: Sequence[Timing]) -> Timing:
  """Returns the medians of times, and the largest peak."""
  seconds, cpu, gib = zip(*timings)
  return Timing(statistics.median(seconds), statistics.median(cpu), max(gib))


def show(name: str, timing: Timing) -> None:
  """Prints one line of the result."""
  print(
    f'{name:<24} {timing.seconds:8.1f} s {timing.cpu:8.1f} CPU s {timing.gib:6.2f} GiB', flush=True
  )


def main() -> None:
  work = pathlib.Path(FLAGS.workdir).absolute()
  shutil.rmtree(work, ignore_errors=True)
  model = config(layers_of(FLAGS.gigabytes))
  size = trees.count(families.abstract_params(model)) * _DTYPE.itemsize / 1e9
  chosen = FLAGS.methods
  needs_base = any(methods.METHODS[name].base == 'required' for name in chosen)
  folders = (*_INPUTS, _BASE) if needs_base else _INPUTS
  print(f'making {len(folders)} checkpoints of {size:.2f} GB ...', flush=True)
  small = config(1, vocab=8, width=32, heads=1, kv_heads=1, multiple_of=8)
  for name in folders:
    write_ours(work / name, model)
    write_ours(work / 'small' / name, small)
  program = None if FLAGS.mergekit == 'none' else mergekit(work)
  if program is not None:
    for name in folders:
      write_safetensors(work / name, work / f'{name}_hf', model)
  mixed, merged = work / 'mixed', work / 'merged'
  for method in chosen:
    start = medians([mix(work / 'small', method, mixed) for _ in range(3)])
    ours, theirs, copies = [], [], []
    for _ in range(FLAGS.rounds):
      copies += [copy_and_read(work)] if method == 'linear' else []
      ours.append(mix(work, method, mixed))
      copies += [copy_and_read(work)] if method == 'linear' else []
      if program is not None:
        theirs.append(merge(work, method, merged, program))
    show(f'{method}', medians(ours))
    show(f'{method}, start-up', start)
    if copies:
      net, copy = medians(ours).seconds - start.seconds, medians(copies)
      show('cp and cat', copy)
      print(f'without start-up {net / copy.seconds:.2f} times cp and cat')
    if theirs:
      theirs_median, ours_median = medians(theirs), medians(ours)
      show(f'{method}, mergekit', theirs_median)
      print(
        f'mergekit takes {theirs_median.seconds / ours_median.seconds:.2f} times as long, and '
        f'{theirs_median.cpu / ours_median.cpu:.2f} times the CPU seconds'
      )
      if method in ('linear', 'slerp'):
        print(differences(merged, mixed))
    print(f'hash {store.load_meta(mixed)["hash"]}', flush=True)
    shutil.rmtree(mixed)
    shutil.rmtree(merged, ignore_errors=True)
  shutil.rmtree(work)


if __name__ == '__main__':
  flags.DEFINE_float('gigabytes', 4.0, 'Size of each checkpoint.', lower_bound=1.4)
  flags.DEFINE_integer('rounds', 3, 'Number of rounds; the median counts.', lower_bound=1)
  flags.DEFINE_list(
    'methods', ['linear', 'slerp', 'ties', 'dare_linear', 'dare_ties'], 'Methods to time.'
  )
  flags.DEFINE_string(
    'workdir', 'workdir/mix_benchmark', 'Folder of the files; emptied before and removed after.'
  )
  flags.DEFINE_string(
    'mergekit', None, "Environment of mergekit, made if absent; 'none' leaves it out."
  )
  flags.DEFINE_bool('verbose', False, 'Show the output of the programs.')
  cli.run(main)
