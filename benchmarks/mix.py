"""Times mixing two synthetic checkpoints, against `cp` and mergekit: `python -m benchmarks.mix`.

The tensors are random bfloat16 with 7B's widths, and as many decoder layers as make the size. `cp`
of the output plus `cat` of both inputs is timed before and after each mix, with the same page
cache. Then mergekit merges the same tensors as safetensors. It gets an environment of its own
beside --workdir, because it needs other versions than sphinx_jax. All times are from the start of a
process to its exit. The benchmark needs about 4 times the size on disk under --workdir.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import venv
import zlib

import ml_dtypes
import numpy as np
from absl import flags

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import safetensors
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import cli
from sphinx_jax.models.llms import llama

FLAGS = flags.FLAGS
_COEFFICIENTS = (0.3, 0.7)
_MERGEKIT = ('mergekit==0.1.5', 'torch==2.13.0')
_VOCAB, _WIDTH, _HIDDEN = 32000, llama.SIZES['7b']['width'], 11008
_LAYER = {
  'self_attn.q_proj': (_WIDTH, _WIDTH),
  'self_attn.k_proj': (_WIDTH, _WIDTH),
  'self_attn.v_proj': (_WIDTH, _WIDTH),
  'self_attn.o_proj': (_WIDTH, _WIDTH),
  'mlp.gate_proj': (_HIDDEN, _WIDTH),
  'mlp.up_proj': (_HIDDEN, _WIDTH),
  'mlp.down_proj': (_WIDTH, _HIDDEN),
  'input_layernorm': (_WIDTH,),
  'post_attention_layernorm': (_WIDTH,),
}
_OTHER = {
  'model.embed_tokens': (_VOCAB, _WIDTH),
  'model.norm': (_WIDTH,),
  'lm_head': (_VOCAB, _WIDTH),
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
  """Returns path -> shape in our checkpoints, with stacked layers."""
  return {f'llm/layers/{name}': (layers, *shape) for name, shape in _LAYER.items()} | {
    f'llm/{name}': shape for name, shape in _OTHER.items()
  }


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns bfloat16 numbers of the size of weights, cheap to draw."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  return ((rng.integers(0, 2**15, shape, np.uint16) & 0x81FF) | 0x3C00).view(ml_dtypes.bfloat16)


def write_ours(folder: pathlib.Path, layers: int) -> None:
  """Writes a checkpoint of sphinx_jax, one layer in memory at a time."""
  arrays = {
    path: stream.Array(shape, np.dtype(ml_dtypes.bfloat16), None, layers if 'layers' in path else 1)
    for path, shape in shapes(layers).items()
  }
  meta = {'config': '{}', 'tokenizer': '', 'dialog': {}}
  writer = stream.Writer(folder, {'params': arrays}, meta)
  for path, array in arrays.items():
    for i in range(array.layers):
      part = array.shape[1:] if array.layers > 1 else array.shape
      writer.write(
        'params', path, _random(f'{folder.name} {path} {i}', part), (i,) if array.layers > 1 else ()
      )
  writer.finish()


def write_safetensors(source: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes the same tensors under the names of transformers, with a config for mergekit."""
  arrays, dtype, layers = stream.read(source), np.dtype(ml_dtypes.bfloat16), 0
  tensors = {}
  for path, array in arrays.items():
    if path.startswith('llm/layers/'):
      layers, name = array.shape[0], path.removeprefix('llm/layers/')
      tensors |= {
        f'model.layers.{i}.{name}.weight': Tensor(
          array.shape[1:], dtype, lambda array=array, i=i: array.read((i,))
        )
        for i in range(layers)
      }
    else:
      tensors[path.removeprefix('llm/') + '.weight'] = Tensor(
        array.shape, dtype, lambda array=array: array.read(())
      )
  folder.mkdir(parents=True)
  safetensors.write_safetensors(folder, tensors)
  (folder / 'config.json').write_text(
    json.dumps(
      {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'hidden_size': _WIDTH,
        'intermediate_size': _HIDDEN,
        'num_hidden_layers': layers,
        'num_attention_heads': 32,
        'num_key_value_heads': 32,
        'vocab_size': _VOCAB,
        'torch_dtype': 'bfloat16',
        'tie_word_embeddings': False,
      }
    )
  )


def timed(*command: str) -> tuple[float, float]:
  """Runs a process and returns (seconds from start to exit, peak resident memory in GiB)."""
  start = time.monotonic()
  process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=None if FLAGS.verbose else subprocess.DEVNULL
  )
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if status:
    raise SystemExit(f'{" ".join(command)} failed; --verbose shows its output')
  return time.monotonic() - start, usage.ru_maxrss / 2**20


def compared(inputs: list[pathlib.Path], written: pathlib.Path, copy: pathlib.Path) -> float:
  """Returns the seconds of `cp` of the output plus `cat` of the inputs."""
  copying, _ = timed('cp', '-r', str(written), str(copy))
  shutil.rmtree(copy)
  reading, _ = timed(
    'sh', '-c', f'find {" ".join(map(str, inputs))} -type f -print0 | xargs -0 cat'
  )
  return copying + reading


def mergekit(work: pathlib.Path) -> pathlib.Path:
  """Returns the program of mergekit, in an environment that is made if absent."""
  home = pathlib.Path(FLAGS.mergekit or work.parent / 'mergekit_venv')
  if not (home / 'bin' / 'mergekit-yaml').exists():
    print('installing mergekit ...', flush=True)
    venv.create(home, with_pip=True)
    subprocess.run([str(home / 'bin' / 'pip'), 'install', '-q', *_MERGEKIT], check=True)
  return home / 'bin' / 'mergekit-yaml'


def merge(
  work: pathlib.Path, inputs: list[pathlib.Path], mixed: pathlib.Path
) -> list[tuple[float, float]]:
  """Times mergekit and compares its tensors with ours.

  They must be equal but for the last bit, because mergekit rounds a sum twice.

  Returns:
    (seconds, peak GiB) of each round.
  """
  program = mergekit(work)
  folders = [work / f'{source.name}_hf' for source in inputs]
  for source, folder in zip(inputs, folders):
    write_safetensors(source, folder)
    shutil.rmtree(source)  # The benchmark promises a bound on the disk space.
  config = work / 'merge.json'  # JSON is YAML.
  config.write_text(
    json.dumps(
      {
        'merge_method': 'linear',
        'dtype': 'bfloat16',
        'models': [
          {'model': str(folder), 'parameters': {'weight': number}}
          for folder, number in zip(folders, _COEFFICIENTS)
        ],
      }
    )
  )
  rounds, output = [], work / 'merged'
  for _ in range(FLAGS.rounds):
    shutil.rmtree(output, ignore_errors=True)
    rounds.append(timed(str(program), str(config), str(output), '--no-copy-tokenizer'))
  print(f'mergekit against sphinx_jax: {differences(output, mixed)}')
  return rounds


def differences(merged: pathlib.Path, mixed: pathlib.Path) -> str:
  """Describes how many numbers differ, and by how many steps of bfloat16 at most."""
  merged_tensors = safetensors.open_safetensors(merged)
  different, total, largest = 0, 0, 0
  for path, array in stream.read(mixed).items():
    for index, _ in array.pieces():
      if 'layers' in path and not index:
        continue  # Small vectors, which are read as one stack.
      if index:
        name = f'model.layers.{index[0]}.{path.removeprefix("llm/layers/")}.weight'
      else:
        name = f'{path.removeprefix("llm/")}.weight'
      ours = array.read(index).view(np.int16).astype(np.int32)
      steps = np.abs(ours - merged_tensors[name].read().view(np.int16))
      different += np.count_nonzero(steps)
      total += steps.size
      largest = max(largest, int(steps.max()))
  return f'{different} of {total} numbers differ, by at most {largest} steps of bfloat16'


def main() -> None:
  work = pathlib.Path(FLAGS.workdir).absolute()
  inputs, output = [work / 'first', work / 'second'], work / 'mixed'
  shutil.rmtree(work, ignore_errors=True)
  layer_bytes, other_bytes = (
    2 * sum(int(np.prod(shape)) for shape in group.values()) for group in (_LAYER, _OTHER)
  )
  layers = max(2, round((FLAGS.gigabytes * 1e9 - other_bytes) / layer_bytes))
  size = (layers * layer_bytes + other_bytes) / 1e9
  print(f'making two checkpoints of {size:.2f} GB ...', flush=True)
  for folder in inputs:
    write_ours(folder, layers)
  rounds = []
  written = inputs[0]  # It has as many bytes as the mix.
  for number in range(1, FLAGS.rounds + 1):
    before = compared(inputs, written, work / 'copy')
    shutil.rmtree(output, ignore_errors=True)
    seconds, memory = timed(
      sys.executable,
      '-m',
      'sphinx_jax.mix_weights',
      f'--inputs={inputs[0]},{inputs[1]}',
      f'--output={output}',
      f'--coefficients={",".join(map(str, _COEFFICIENTS))}',
      f'--method={FLAGS.method}',
    )
    copying = (before + compared(inputs, written, work / 'copy')) / 2
    rounds.append((seconds, copying, memory))
    print(
      f'round {number}: mix {seconds:.1f} s, cp and cat {copying:.1f} s, '
      f'ratio {seconds / copying:.2f}, peak {memory:.2f} GiB',
      flush=True,
    )
  ours = statistics.median(seconds for seconds, _, _ in rounds)
  copying = statistics.median(seconds for _, seconds, _ in rounds)
  peak = max(memory for _, _, memory in rounds)
  print(
    f'medians: mix {ours:.1f} s, cp of the output and cat of the inputs {copying:.1f} s: '
    f'{ours / copying:.2f} times; peak {peak:.2f} GiB; hash {store.load_meta(output)["hash"]}',
    flush=True,
  )
  if FLAGS.mergekit != 'none':
    merges = merge(work, inputs, output)
    median = statistics.median(seconds for seconds, _ in merges)
    print(
      f'mergekit: {", ".join(f"{seconds:.1f}" for seconds, _ in merges)} s, median {median:.1f}, '
      f'peak {max(peak for _, peak in merges):.2f} GiB; it takes {median / ours:.2f} times as long'
    )
  shutil.rmtree(work)


if __name__ == '__main__':
  flags.DEFINE_float('gigabytes', 4.0, 'Size of each checkpoint.', lower_bound=1.4)
  flags.DEFINE_integer('rounds', 3, 'Number of rounds; the median counts.', lower_bound=1)
  flags.DEFINE_enum('method', 'linear', ['linear', 'slerp'], 'Method of sphinx_jax.')
  flags.DEFINE_string(
    'workdir', 'workdir/mix_benchmark', 'Folder of the files; emptied before and removed after.'
  )
  flags.DEFINE_string(
    'mergekit', None, "Environment of mergekit, made if absent; 'none' leaves it out."
  )
  flags.DEFINE_bool('verbose', False, 'Show the output of the programs.')
  cli.run(main)
