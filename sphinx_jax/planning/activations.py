"""Estimate of the working memory of an update, without a compiler.

What remat keeps is read from the traced shapes. The rest is a formula with two constants that are
fitted to compiled programs. docs/results.md compares the estimate with compiled bytes.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sphinx_jax.core import trees
from sphinx_jax.models import experts, families
from sphinx_jax.parallel import rules
from sphinx_jax.planning import flops, leaves, roofline

# Number of arrays [positions, width] and [positions, feed-forward width], in bfloat16, that are
# live in the backward pass of one layer: the inputs and gradients of each product, six of them in
# float32 (rotary). Both are fitted to the compiled programs of docs/results.md. With them the
# estimate is within 8 % of a device's total.
_LIVE_MODEL_WIDTH = 32
_LIVE_FEED_FORWARD_WIDTH = 6
# With microbatches: the sum, the gradient of one, and what the compiler copies of both. Fitted.
_ACCUMULATED = 3.75
# With experts on several devices, also fitted: rows are exchanged in a first round and in a loop of
# further ones, whose arrays are live together, and the gradients are there twice.
_ROUNDS = 2
_EXCHANGED_GRADIENTS = 2
_GATHERED_LAYERS = 2  # Layers whose weights are all-gathered at once: one in use, the next one.
_BFLOAT16_BYTES = 2
_FLOAT32_BYTES = 4
_NOT_OF_IMAGES = ('llm', 'lm_head', 'other')  # Parts without a size that grows with the images.


class Needs(NamedTuple):
  """What an update needs, over all devices.

  Attributes:
    stacks: (shape [layers,...], item size) of what the layers of the language model keep for the
      backward pass.
    images: bytes for the encoders and projections: what those that are trained keep for the
      backward pass (operands and results of products, and stacks of loops), and the gradients of
      the former or the largest result of a product.
  """

  stacks: tuple[tuple[tuple[int, ...], int], ...]
  images: int


def estimate(config: ConfigDict, program: Any, needs: Needs) -> dict[str, int]:
  """Estimates the working memory on one device.

  Args:
    config: the run's config.
    program: its `sphinx_jax.run.Program`.
    needs: `needs` of the same config with one row.

  Returns:
    Bytes by purpose:
      'gradients': exact without microbatches and exchanged experts; they are sharded like the
        trained parameters.
      'casts': the device's part of the trained parameters in bfloat16, which the compiler makes
        before the loop over layers.
      'saved': what the forward pass keeps for the backward pass under `model.remat`, exact up to
        padding.
      'weights': weights of the layers that are all-gathered at once, and the gradient of one layer
        before it is scattered.
      'layer': what the backward pass of one layer has live.
      'images': what the encoders need beyond that, as they run before and after the layers.
      'lm_head': the logits of one chunk, their gradient, and the output matrix.
  """
  mesh, model = program.mesh.shape, config.model
  axes = trees.flatten(program.layout.logical_axes['llm'])
  batch_ways = rules.ways('batch', program.mesh)
  rows = config.batch.size // program.microbatches // batch_ways
  positions = rows * config.batch.seq_len

  weights = 0
  for group, bytes_of_gradient in (
    (program.state.trained, _FLOAT32_BYTES),
    (program.state.frozen, 0),
  ):
    for path, leaf in trees.flatten(group.get('llm', {})).items():
      if path.startswith('layers/'):
        gathered = min(np.dtype(leaf.dtype).itemsize, _BFLOAT16_BYTES)
        if roofline.gather_ways(path, axes, program) > 1:
          gathered = gathered * _GATHERED_LAYERS + bytes_of_gradient
        weights += math.prod(leaf.shape[1:]) // roofline.split_ways(path, axes, program) * gathered
  llm = trees.flatten(families.abstract_params(model)['llm'])
  feed_forward_width = llm['layers/feed_forward/w1/kernel'].shape[-1]
  copies = model.llm.get('experts_per_token', 1)  # Rows of a position in a feed-forward layer.

  trained = sum(leaves.local_bytes(leaf) for leaf in trees.flatten(program.state.trained).values())
  is_exchanged = mesh['expert'] > 1
  once = _EXCHANGED_GRADIENTS if is_exchanged else 1
  gradients = int(trained * (_ACCUMULATED if program.microbatches > 1 else once))

  rows_of_experts = copies * (_ROUNDS * experts.ROOM if is_exchanged else 1)
  live = _LIVE_MODEL_WIDTH * model.llm.width
  live += _LIVE_FEED_FORWARD_WIDTH * feed_forward_width * rows_of_experts / mesh['tensor']

  layer = int(positions * _BFLOAT16_BYTES * live)
  images = needs.images * rows // mesh['tensor']  # Images are spread over all devices.

  chunk = config.loss_chunk or config.batch.seq_len
  logits = 2 * _FLOAT32_BYTES * positions * chunk // config.batch.seq_len
  output_matrix = model.llm.width * (_BFLOAT16_BYTES + _FLOAT32_BYTES)

  return {
    'gradients': gradients,
    'casts': trained // 2,
    'saved': sum(
      _local_stack_bytes(*stack, rows, config.batch.seq_len, copies, program.mesh.size)
      for stack in needs.stacks
    ),
    'weights': weights,
    'layer': layer,
    'images': max(images - layer, 0),
    'lm_head': model.llm.vocab // mesh['tensor'] * (logits + output_matrix),
  }


def _local_stack_bytes(
  shape: tuple[int, ...], itemsize: int, rows: int, seq_len: int, copies: int, devices: int
) -> int:
  """Returns the bytes on one device of a stack over layers that the forward pass keeps.

  A stack of activations, [layers,1,...] or of products [layers,T,...] or [layers,T*copies,...], was
  traced with one row and has `rows` rows on a device. A stack of weights is split over all devices.
  """
  nbytes = math.prod(shape) * itemsize
  is_activation = len(shape) > 2 and shape[1] in (1, seq_len, seq_len * copies)
  return nbytes * rows if is_activation else nbytes // devices


def needs(traced: Any, names: Collection[str]) -> Needs:
  """What the update of `Program.trace()` needs.

  Args:
    traced: the trace.
    names: `families.part_names` of its model.
  """
  stacks, products, trained = [], [], set()
  for eqn, path, in_loop in _equations(traced.jaxpr.jaxpr, '', False):
    part = flops.part_of(path, names)
    is_product = eqn.primitive.name in flops.PRODUCTS
    if 'transpose(' in path:
      trained |= {part} if is_product else set()
    elif 'jvp(' in path:
      if eqn.primitive.name == 'scan' and not in_loop:
        stacked = [out.aval for out in eqn.outvars[eqn.params['num_carry'] :]]
        stacks += [(part, aval.shape, np.dtype(aval.dtype).itemsize) for aval in stacked]
      elif is_product and part not in _NOT_OF_IMAGES:
        products.append((part, in_loop, *map(_nbytes, (eqn.invars[0].aval, eqn.outvars[0].aval))))
  of_layers = tuple((shape, size) for part, shape, size in stacks if part == 'llm')
  trained -= {'llm'}
  in_loops = sum(math.prod(shape) * size for part, shape, size in stacks if part in trained)
  kept = sum(sum(sizes) for part, in_loop, *sizes in products if part in trained and not in_loop)
  largest = max((out for *_, out in products), default=0)
  # At the peak the gradients of all that is kept are live, too: of a gated MLP, those of both
  # branches and of their product.
  return Needs(of_layers, in_loops + kept + max(kept, largest))


def _nbytes(aval: Any) -> int:
  return aval.size * np.dtype(aval.dtype).itemsize


def _equations(jaxpr: Any, path: str, in_loop: bool) -> Iterator[tuple[Any, str, bool]]:
  """Yields all equations, with name stack and whether a loop over layers is around them."""
  for eqn in jaxpr.eqns:
    eqn_path = f'{path}/{eqn.source_info.name_stack}'
    yield eqn, eqn_path, in_loop
    in_layers = eqn.primitive.name == 'scan' and 'jvp(' in eqn_path
    for inner in flops.inner_jaxprs(eqn.params):
      yield from _equations(inner, eqn_path, in_loop or in_layers)
