"""Working memory of an update without a compiler: what remat keeps, read from the traced shapes, and a formula for the rest.

An estimate: benchmarks/RESULTS.md has it beside compiled figures.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sphinx_jax.core import trees
from sphinx_jax.planning import flops, leaves

# What the backward pass of one layer has in flight, in bfloat16 activations of the model width and of the feed-forward
# width: inputs and gradients of each product, six of them in float32 (rotary). Fitted to the compiled programs of
# benchmarks/RESULTS.md, which it meets within 8 % of a device's total.
_WIDE, _HIDDEN = 32, 6
_GATHERED = 2  # layers whose weights are on a device at once: one in use, one on its way
_COMPUTE = 2  # bytes of bfloat16


Stacks = Sequence[tuple[tuple[int, ...], int]]


def estimate(config: ConfigDict, program: Any, saved: Stacks) -> dict[str, int]:
  """Bytes of working memory on one device, by what they are for.

  Args:
    config: of the run.
    program: `sphinx_jax.run.Program` of it.
    saved: `saved_stacks` of the same config with one row a microbatch.

  Returns:
    'gradients': exact, as the trained parameters lie. 'casts': a device's part of the trained parameters in bfloat16, which
    the compiler makes before the loop over layers. 'saved': what the forward pass keeps for the backward pass by
    `model.remat`, exact up to padding. 'weights': of layers that are gathered at a time, and a layer's gradient before it
    is scattered. 'layer': what a layer's backward pass has in flight. 'head': logits of one chunk, their gradient and the
    output matrix.
  """
  ways = program.mesh.shape['data'] * program.mesh.shape['fsdp']
  tensor = program.mesh.shape['tensor']
  rows = config.batch.size // config.optimizer.accumulate
  positions = rows // ways * config.batch.seq_len
  chunk = config.get('loss_chunk', 0) or config.batch.seq_len
  llm = trees.flatten(program.state.params['llm'])
  stacked = {path: leaf for path, leaf in llm.items() if path.startswith('layers/')}
  layer = sum(math.prod(leaf.shape[1:]) for leaf in stacked.values()) // tensor
  width, hidden = config.model.llm.width, stacked['layers/feed_forward/w1/kernel'].shape[-1]
  sharded = program.mesh.shape['fsdp'] > 1
  gradients = sum(
    leaves.local_bytes(leaf) for leaf in trees.flatten(program.state.trained).values()
  )
  return {
    'gradients': gradients * (2 if config.optimizer.accumulate > 1 else 1),
    'casts': gradients // 2,
    'saved': sum(_split(shape, size, rows // ways, program.mesh.size) for shape, size in saved),
    'weights': layer * (_COMPUTE * (_GATHERED if sharded else 1) + (4 if sharded else 0)),
    'layer': positions * _COMPUTE * (_WIDE * width + _HIDDEN * hidden // tensor),
    'head': config.model.llm.vocab
    // tensor
    * (2 * 4 * positions * chunk // config.batch.seq_len + width * (_COMPUTE + 4)),
  }


def _split(shape: tuple[int, ...], size: int, rows: int, devices: int) -> int:
  """Bytes on one device of a stack [layers,...]: of activations [layers,1,...] for all its rows, of weights its part."""
  nbytes = math.prod(shape) * size
  return nbytes * rows if len(shape) > 2 and shape[1] == 1 else nbytes // devices


def saved_stacks(traced: Any) -> Stacks:
  """Shape and item size, over all devices, of what `Program.trace()` keeps of its layers for the backward pass."""
  return tuple(_saved(traced.jaxpr.jaxpr))


def _saved(jaxpr: Any) -> Iterator[tuple[tuple[int, ...], int]]:
  """What scans over layers stack up in the forward pass of a differentiated function."""
  for eqn in jaxpr.eqns:
    names = str(eqn.source_info.name_stack)
    if eqn.primitive.name == 'scan' and 'jvp(' in names and 'transpose(' not in names:
      for out in eqn.outvars[eqn.params['num_carry'] :]:
        yield out.aval.shape, np.dtype(out.aval.dtype).itemsize
    else:
      for inner in flops.inner_jaxprs(eqn.params):
        yield from _saved(inner)
