"""Time of a mixture of experts beside a dense layer of its active size, and beside a plain loop.

    python -m benchmarks.moe   # laptop sizes; an accelerator takes those of Mixtral:
    python -m benchmarks.moe --tokens=8192 --width=4096 --hidden=14336 --dtype=bfloat16

Every kernel of models/grouped.py computes one layer (router, experts and their sum), forward, and
forward and backward. The dense layer has experts_per_token times the hidden width. The layers are
timed in turns, so that other programs disturb all of them, and the shortest time of each counts.
"""

import argparse
import functools
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.models import experts, grouped, layers


def make(module: object, x: jax.Array) -> dict[str, Callable[[], object]]:
  """The layer's two works: name -> a call that waits for the result."""
  params = {'params': nn.unbox(jax.jit(module.init)(jax.random.key(0), x)['params'])}

  def loss(params: dict, x: jax.Array) -> jax.Array:
    return module.apply(params, x).astype(jnp.float32).sum()

  forward = jax.jit(module.apply)
  backward = jax.jit(jax.grad(loss, (0, 1)))
  return {
    'forward': functools.partial(forward, params, x),
    'backward': functools.partial(backward, params, x),
  }


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
  """Seconds by layer and work."""
  dtype = jnp.dtype(options.dtype)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, options.tokens, options.width)), dtype)
  names = 'embed', 'ffn'
  found = {'dense': make(layers.GatedMlp(options.hidden * options.per_token, 1.0, dtype, names), x)}
  for kernel in options.kernels.split(','):
    mixture = experts.Experts(
      options.hidden, options.experts, options.per_token, 1.0, kernel, False, dtype
    )
    found[kernel] = make(mixture, x)
  seconds = {name: dict.fromkeys(works, float('inf')) for name, works in found.items()}
  for _ in range(options.repeats + 1):  # The first one compiles.
    for name, works in found.items():
      for work, call in works.items():
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds[name][work] = min(seconds[name][work], time.perf_counter() - began)
  return seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--tokens', type=int, default=2048, help='%(default)s')
  parser.add_argument('--width', type=int, default=512, help='%(default)s')
  parser.add_argument('--hidden', type=int, default=1024, help='of an expert; %(default)s')
  parser.add_argument('--experts', type=int, default=8, help='%(default)s')
  parser.add_argument('--per_token', type=int, default=2, help='%(default)s')
  parser.add_argument('--dtype', default='float32', help='%(default)s')
  parser.add_argument('--repeats', type=int, default=20, help='%(default)s')
  default = ','.join((grouped.choose(grouped.AUTO, jax.default_backend()), 'loop'))
  parser.add_argument('--kernels', default=default, help='%(default)s')
  seconds = measure(parser.parse_args())
  print('| layer | forward, ms | of dense | with gradients, ms | of dense |\n|---|---|---|---|---|')
  for name, works in seconds.items():
    cells = [
      f'{1e3 * works[work]:.1f} | {works[work] / seconds["dense"][work]:.2f}'
      for work in ('forward', 'backward')
    ]
    print(f'| {name} | {" | ".join(cells)} |')


if __name__ == '__main__':
  main()
