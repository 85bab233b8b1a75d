"""Estimate of the working memory of an update, without a compiler.

What remat keeps is read from the traced shapes. The rest is a formula with two constants that are
fitted to compiled programs. docs/results.md compares the estimate with compiled bytes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sphinx_jax.core import trees
from sphinx_jax.planning import flops, leaves

# Number of arrays [positions, width] and [positions, feed-forward width], in bfloat16, that are
# live in the backward pass of one layer: the inputs and gradients of each product, six of them in
# float32 (rotary). Both are fitted to the compiled programs of docs/results.md. With them the
# estimate is within 8 % of a device's total.
_LIVE_MODEL_WIDTH = 32
_LIVE_FEED_FORWARD_WIDTH = 6
_GATHERED_LAYERS = 2  # Layers whose weights are all-gathered at once: one in use, the next one.
_BFLOAT16_BYTES = 2
_FLOAT32_BYTES = 4

SavedStacks = Sequence[tuple[tuple[int, ...], int]]  # [(shape [layers,...], item size), ...]


def estimate(config: ConfigDict, program: Any, saved: SavedStacks) -> dict[str, int]:
  """Estimates the working memory on one device.

  Args:
    config: the run's config.
    program: its `sphinx_jax.run.Program`.
    saved: `saved_stacks` of the same config with one row per microbatch.

  Returns:
    Bytes by purpose:
      'gradients': exact; they are sharded like the trained parameters.
      'casts': the device's part of the trained parameters in bfloat16, which the compiler makes
        before the loop over layers.
      'saved': what the forward pass keeps for the backward pass under `model.remat`, exact up to
        padding.
      'weights': weights of the layers that are all-gathered at once, and the gradient of one layer
        before it is scattered.
      'layer': what the backward pass of one layer has live.
      'lm_head': the logits of one chunk, their gradient, and the output matrix.
  """
  mesh, model = program.mesh.shape, config.model
  batch_ways = mesh['data'] * mesh['fsdp']
  rows = config.batch.size // config.optimizer.accumulate // batch_ways
  positions = rows * config.batch.seq_len

  layer_leaves = {
    path: leaf
    for path, leaf in trees.flatten(program.state.params['llm']).items()
    if path.startswith('layers/')
  }
  layer_weights = sum(math.prod(leaf.shape[1:]) for leaf in layer_leaves.values())
  layer_weights //= mesh['tensor']
  feed_forward_width = layer_leaves['layers/feed_forward/w1/kernel'].shape[-1]

  trained = sum(leaves.local_bytes(leaf) for leaf in trees.flatten(program.state.trained).values())
  gradients = trained * 2 if config.optimizer.accumulate > 1 else trained

  if mesh['fsdp'] > 1:
    bytes_per_weight = _BFLOAT16_BYTES * _GATHERED_LAYERS + _FLOAT32_BYTES
  else:
    bytes_per_weight = _BFLOAT16_BYTES

  live = _LIVE_MODEL_WIDTH * model.llm.width
  live += _LIVE_FEED_FORWARD_WIDTH * feed_forward_width // mesh['tensor']

  chunk = config.loss_chunk or config.batch.seq_len
  logits = 2 * _FLOAT32_BYTES * positions * chunk // config.batch.seq_len
  output_matrix = model.llm.width * (_BFLOAT16_BYTES + _FLOAT32_BYTES)

  return {
    'gradients': gradients,
    'casts': trained // 2,
    'saved': sum(_local_stack_bytes(*stack, rows, program.mesh.size) for stack in saved),
    'weights': layer_weights * bytes_per_weight,
    'layer': positions * _BFLOAT16_BYTES * live,
    'lm_head': model.llm.vocab // mesh['tensor'] * (logits + output_matrix),
  }


def _local_stack_bytes(shape: tuple[int, ...], itemsize: int, rows: int, devices: int) -> int:
  """Returns the bytes on one device of a stack over layers that the forward pass keeps.

  A stack of activations [layers,1,...] was traced with one row and has `rows` rows on a device. A
  stack of weights is split over all devices.
  """
  nbytes = math.prod(shape) * itemsize
  is_activation = len(shape) > 2 and shape[1] == 1
  return nbytes * rows if is_activation else nbytes // devices


def saved_stacks(traced: Any) -> SavedStacks:
  """Returns what the layers of `Program.trace()` keep for the backward pass, over all devices."""
  return tuple(_saved(traced.jaxpr.jaxpr))


def _saved(jaxpr: Any) -> Iterator[tuple[tuple[int, ...], int]]:
  """Yields shape and item size of the stacked outputs of scans in the forward pass."""
  for eqn in jaxpr.eqns:
    names = str(eqn.source_info.name_stack)
    is_forward_pass = 'jvp(' in names and 'transpose(' not in names
    if eqn.primitive.name == 'scan' and is_forward_pass:
      for out in eqn.outvars[eqn.params['num_carry'] :]:
        yield out.aval.shape, np.dtype(out.aval.dtype).itemsize
    else:
      for inner in flops.inner_jaxprs(eqn.params):
        yield from _saved(inner)
