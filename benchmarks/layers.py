"""Time to compile decoding of many layers: as a loop over a stack, and each layer for itself.

    python -m benchmarks.layers
    python -m benchmarks.layers --layers=32,40 --width=128

A language model of LLaMA's form, whose width does not change the number of operations. On a CPU
`sphinx_jax.load` takes separate layers, which decode faster (docs/results.md); elsewhere the stack.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.models import families, layers, multimodal


def config_of(count: int, width: int) -> dict:
  """The model config of a language model alone with that many layers."""
  llm = dict(name='llama', vocab=320, width=width, layers=count, heads=width // 32)
  settings = dict(name='sphinx', image_size=64, grid=1, pool=1, half_round=False, encoders={})
  return multimodal.model_config({**settings, 'llm': llm}, 'float32')


def compile_seconds(count: int, width: int, separate: bool) -> float:
  """Seconds to trace and compile prefill of 64 positions and a step over 128 of a cache."""
  config = config_of(count, width)
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), families.abstract_params(config)
  )
  if separate:
    params = families.for_decoding(config, params)
  module = families.build(config, separate=separate)
  tokens = jnp.zeros((1, 64), jnp.int32)
  cache = module.apply({'params': params}, 1, 128, method=lambda m, *a: m.llm.init_cache(*a))

  def run(method: str, *arguments: object) -> None:
    function = lambda params, *given: module.apply({'params': params}, *given, method=method)
    jitted = jax.jit(function, compiler_options=layers.compiler_options())
    jitted.lower(params, *arguments).compile()

  began = time.perf_counter()
  run('prefill', tokens, tokens - 1, jnp.array([64]), None)
  step = tokens[:, :1]
  run('decode', step, step - 1, step, None, cache)
  return time.perf_counter() - began


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--layers', default='2,32,40', help='%(default)s')
  parser.add_argument('--width', type=int, default=128, help='%(default)s')
  options = parser.parse_args()
  print('| layers | a stack, seconds | separate, seconds |\n|---|---|---|')
  for count in map(int, options.layers.split(',')):
    seconds = [compile_seconds(count, options.width, separate) for separate in (False, True)]
    print(f'| {count} | {seconds[0]:.1f} | {seconds[1]:.1f} |', flush=True)


if __name__ == '__main__':
  main()
