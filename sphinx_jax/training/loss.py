"""The loss: float32 cross entropy of the next token, a weighted mean over the global batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.models.adapters import Adapted, Blocks
from sphinx_jax.parallel import placement

MEAN = 'mean/'  # Begins the name of a sum whose mean over the weight is a metric.
PENALTY = 'penalty'  # Name of the sum over microbatches of what is added to the mean loss.
ROUTER = f'{MEAN}router/'  # Begins the names of the metrics of routers.


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross entropy of each position.

  The target's logit is selected by comparison instead of a gather, so that the vocabulary may be
  split over the mesh.

  Args:
    logits: float[B,T,vocab].
    targets: int32[B,T].

  Returns:
    float32[B,T], in nats.
  """
  logits = logits.astype(jnp.float32)
  target = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - target


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """bool[B,T,vocab]."""
  return jnp.arange(logits.shape[-1], dtype=targets.dtype) == targets[..., None]


def sums(
  hidden: jax.Array,
  matrices: Blocks,
  batch: Mapping[str, jax.Array],
  tasks: int,
  chunk: int = 0,
) -> dict[str, jax.Array]:
  """Weighted sums over a batch, to be added over microbatches and divided at the end.

  Only `loss` has a gradient. It is computed with the loss, while the logits of a chunk exist, so no
  logits are kept or computed twice. The positions with loss weight come first, and the loop over
  chunks ends after the last of them.

  Args:
    hidden: float[B,T,D], hidden states, the input of the LM head.
    matrices: the LM head float[D,vocab] as blocks of its columns. What is frozen of them costs no
      gradient; an adapter costs none of the size of its matrix.
    batch: see core/batch.py; reads `targets`, `loss_weight` and `task`.
    tasks: number of tasks in the mixture.
    chunk: positions of a row whose logits exist at one time; 0 takes all at once, with or without
      loss weight.

  Returns:
    `loss` float32[] = sum(weight * cross entropy), `weight` float32[] = sum(weight), and both per
    task as `task_loss`, `task_weight` float32[tasks].
  """
  fields = {name: _in_blocks(batch[name]) for name in ('targets', 'loss_weight', 'task')}
  weight = fields['loss_weight'].astype(jnp.float32)
  with jax.named_scope('lm_head'):
    loss, losses = _weighted_loss(
      _in_blocks(hidden),
      matrices,
      fields['targets'],
      weight,
      _chunk_of_block(hidden, chunk),
    )
  is_task = (fields['task'][..., None] == jnp.arange(tasks, dtype=jnp.int32)).astype(jnp.float32)
  return {
    'loss': loss,
    'weight': weight.sum(),
    'task_loss': jnp.einsum('bt,btk->k', losses, is_task),
    'task_weight': jnp.einsum('bt,btk->k', weight, is_task),
  }


def of_router(router: Mapping[str, jax.Array], weight: jax.Array) -> dict[str, jax.Array]:
  """The sums of the routers of a microbatch: the penalty, and means weighted by its loss weight.

  Args:
    router: see `families.Forward`.
    weight: float32[], the loss weight of the microbatch.
  """
  if not router:
    return {}
  shares = {f'{ROUTER}share_{i}': share * weight for i, share in enumerate(router['share'])}
  balance = jax.lax.stop_gradient(router['balance']) * weight
  return {PENALTY: router['penalty'], f'{ROUTER}balance': balance, **shares}


def per_position(
  hidden: jax.Array,
  matrices: Blocks,
  batch: Mapping[str, jax.Array],
  chunk: int = 0,
) -> jax.Array:
  """Cross entropy of the positions with loss weight, float32[B,T] in nats; 0 elsewhere.

  The gradient computes the logits a second time.

  Args:
    hidden: float[B,T,D], hidden states, the input of the LM head.
    matrices: see `sums`.
    batch: see core/batch.py; reads `targets` and `loss_weight`.
    chunk: see `sums`.
  """
  mask = (batch['loss_weight'] > 0).astype(jnp.float32)
  with jax.named_scope('lm_head'):
    losses = _recomputed_losses(
      _in_blocks(hidden),
      matrices,
      _in_blocks(batch['targets']),
      _in_blocks(mask),
      _chunk_of_block(hidden, chunk),
    )
  return losses.reshape(mask.shape)


def _in_blocks(field: jax.Array) -> jax.Array:
  """[B,T,...] -> [G,N,...]: the rows of each device, of which it orders the positions."""
  blocks = placement.batch_ways()
  rows, length = field.shape[:2]
  field = field.reshape(blocks, rows // blocks * length, *field.shape[2:])
  return placement.constrain(field, ('batch', *[None] * (field.ndim - 1)))


def _chunk_of_block(hidden: jax.Array, chunk: int) -> int:
  """Positions of a block whose logits exist at one time, of hidden states [B,T,D]."""
  rows, length, _ = hidden.shape
  return rows // placement.batch_ways() * min(chunk or length, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _recomputed_losses(
  hidden: jax.Array, matrices: Blocks, targets: jax.Array, weight: jax.Array, chunk: int
) -> jax.Array:
  """The weighted losses float32[G,N], each with a gradient; arguments as `_weighted_loss`."""
  return _losses_and_gradients(hidden, matrices, targets, weight, chunk, False, _none(matrices))[0]


def _recomputed_forward(
  hidden: Any, matrices: Any, targets: Any, weight: Any, chunk: int
) -> tuple[jax.Array, tuple]:
  values = jax.tree.map(lambda x: x.value, (hidden, matrices, targets, weight))
  # The structure of a tree is known while the gradient is traced: None is a frozen array.
  trained = jax.tree.map(lambda x: () if x.perturbed else None, matrices)
  return _recomputed_losses(*values, chunk), (values, trained)


def _recomputed_backward(chunk: int, kept: tuple, cotangent: jax.Array) -> tuple:
  (hidden, matrices, targets, weight), trained = kept
  _, of_hidden, of_matrices = _losses_and_gradients(
    hidden,
    matrices,
    targets,
    weight * cotangent,
    chunk,
    True,
    jax.tree.map(lambda _, mark: mark is not None, matrices, trained),
  )
  return of_hidden, of_matrices, None, None


_recomputed_losses.defvjp(_recomputed_forward, _recomputed_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted_loss(
  hidden: jax.Array, matrices: Blocks, targets: jax.Array, weight: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """The sum of the weighted losses, and each of them, which has no gradient.

  Args:
    hidden: float[G,N,D], the positions of G blocks of rows.
    matrices: float[D,vocab] as blocks of its columns.
    targets: int32[G,N].
    weight: float32[G,N].
    chunk: positions of a block at one time, at most N.

  Returns:
    float32[] and float32[G,N].
  """
  losses, *_ = _losses_and_gradients(
    hidden, matrices, targets, weight, chunk, False, _none(matrices)
  )
  return losses.sum(), losses


def _forward(
  hidden: Any, matrices: Any, targets: Any, weight: Any, chunk: int
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
  # A frozen LM head needs no gradient.
  losses, *gradients = _losses_and_gradients(
    *jax.tree.map(lambda x: x.value, (hidden, matrices, targets, weight)),
    chunk,
    hidden.perturbed,
    jax.tree.map(lambda x: x.perturbed, matrices),
  )
  return (losses.sum(), losses), tuple(gradients)


def _backward(chunk: int, gradients: tuple, cotangents: tuple) -> tuple:
  del chunk
  of_loss, _ = cotangents
  return *jax.tree.map(lambda g: (of_loss * g).astype(g.dtype), gradients), None, None


_weighted_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _losses_and_gradients(
  hidden: jax.Array,
  matrices: Blocks,
  targets: jax.Array,
  weight: jax.Array,
  chunk: int,
  to_hidden: bool,
  to_matrices: tuple,
) -> tuple[jax.Array, jax.Array | None, tuple]:
  """Weighted losses float32[G,N], and the gradients of their sum, which are like the arguments.

  Arguments as of `_weighted_loss`; `to_hidden` and `to_matrices`, a tree like `matrices`, ask for
  the gradients. Others are None.
  """

  def compute(
    hidden: jax.Array, targets: jax.Array, weight: jax.Array
  ) -> tuple[jax.Array, jax.Array | None, tuple]:
    """The same of one chunk, the gradients of the matrices as float32[G,...]."""
    logits = _join([_product(hidden, matrix) for matrix in matrices]).astype(jnp.float32)
    losses = weight * cross_entropy(logits, targets)
    error = jax.nn.softmax(logits) - _is_target(logits, targets)
    error = (weight[..., None] * error).astype(hidden.dtype)
    of_blocks = _split(error, [_columns(matrix) for matrix in matrices])
    of_hidden = None
    if to_hidden:
      products = [_of_hidden(block, matrix) for block, matrix in zip(of_blocks, matrices)]
      of_hidden = functools.reduce(jnp.add, products)
    of_matrices = tuple(
      _of_matrix(hidden, block, matrix, to)
      for block, matrix, to in zip(of_blocks, matrices, to_matrices)
    )
    return losses, of_hidden, of_matrices

  blocks, positions, width = hidden.shape
  if chunk == positions:
    losses, of_hidden, of_matrices = compute(hidden, targets, weight)
  else:
    order = jnp.argsort(weight == 0, axis=1, stable=True)
    places = jnp.argsort(order, axis=1)
    slots = -(-positions // chunk) * chunk  # The last chunk may have slots without a position.
    order = jnp.pad(order, ((0, 0), (0, slots - positions)))
    trips = -(-(weight != 0).sum(axis=1).max() // chunk)
    take = jax.vmap(lambda field, at: field.at[at].get(mode='promise_in_bounds'))
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)

    def add(trip: jax.Array, totals: tuple) -> tuple:
      losses, of_hidden, of_matrices = totals
      start = trip * chunk
      at = jax.lax.dynamic_slice_in_dim(order, start, chunk, axis=1)
      own_weight = jnp.where(start + jnp.arange(chunk) < positions, take(weight, at), 0)
      parts = compute(take(hidden, at), take(targets, at), own_weight)
      losses = write(losses, parts[0], start_index=start)
      if to_hidden:
        of_hidden = write(of_hidden, parts[1], start_index=start)
      of_matrices = jax.tree.map(jnp.add, of_matrices, parts[2])
      return losses, of_hidden, of_matrices

    def zero_gradient(array: jax.Array, to: bool, names: tuple[str | None, ...]) -> Any:
      if not to:
        return None
      # The sums of all devices are added after the loop, not in every trip.
      zeros = jnp.zeros((blocks, *array.shape), jnp.float32)
      return placement.constrain(zeros, ('batch', *names))

    # Blocks beside the first one are those of few new tokens, which are not split.
    columns = ['vocab', *[None] * (len(matrices) - 1)]
    names = tuple(_names(matrix, name) for matrix, name in zip(matrices, columns))
    of_matrices = jax.tree.map(zero_gradient, matrices, to_matrices, names)
    zeros = (
      jnp.zeros((blocks, slots), jnp.float32),
      jnp.zeros((blocks, slots, width), hidden.dtype) if to_hidden else None,
      of_matrices,
    )
    losses, of_hidden, of_matrices = jax.lax.fori_loop(0, trips, add, zeros)
    losses = take(losses, places)
    of_hidden = take(of_hidden, places) if to_hidden else None
  of_matrices = jax.tree.map(
    lambda array, gradient: None if gradient is None else gradient.sum(axis=0).astype(array.dtype),
    matrices,
    of_matrices,
  )
  return losses, of_hidden, of_matrices


def _none(matrices: Blocks) -> tuple:
  """Asks for the gradient of no matrix."""
  return jax.tree.map(lambda _: False, matrices)


def _columns(matrix: jax.Array | Adapted) -> int:
  return (matrix.kernel if isinstance(matrix, Adapted) else matrix).shape[1]


def _names(matrix: jax.Array | Adapted, columns: str | None) -> Any:
  """The logical names of the dimensions of a block of the LM head."""
  if isinstance(matrix, Adapted):
    return Adapted(('embed', columns), ('embed', None), (None, columns))
  return 'embed', columns


def _product(hidden: jax.Array, matrix: jax.Array | Adapted) -> jax.Array:
  """Hidden states [G,N,D] times a matrix: [G,N,columns]."""
  if isinstance(matrix, Adapted):
    return hidden @ matrix.kernel + hidden @ matrix.a @ matrix.b
  return hidden @ matrix


def _of_hidden(error: jax.Array, matrix: jax.Array | Adapted) -> jax.Array:
  """The gradient [G,N,D] of the hidden states of `_product`, whose gradient is `error`."""
  if isinstance(matrix, Adapted):
    return error @ matrix.kernel.T + error @ matrix.b.T @ matrix.a.T
  return error @ matrix.T


def _of_matrix(hidden: jax.Array, error: jax.Array, matrix: jax.Array | Adapted, to: Any) -> Any:
  """The gradients float32[G,...] that `to` asks for, of the matrix of `_product`."""

  def of(x: jax.Array, error: jax.Array, to: bool) -> jax.Array | None:
    of_array = 'gnd,gnv->gdv'
    return jnp.einsum(of_array, x, error, preferred_element_type=jnp.float32) if to else None

  if not isinstance(matrix, Adapted):
    return of(hidden, error, to)
  return Adapted(
    of(hidden, error, to.kernel),
    of(hidden, error @ matrix.b.T, to.a),
    of(hidden @ matrix.a, error, to.b),
  )


def _join(blocks: Sequence[jax.Array]) -> jax.Array:
  """Blocks of the last dimension as one array."""
  return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=-1)


def _split(array: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
  """The inverse of `_join`."""
  return [array] if len(sizes) == 1 else jnp.split(array, np.cumsum(sizes)[:-1], axis=-1)


def sum_over(function: Callable[[Any], Any], parts: Any) -> Any:
  """The sum of `function(part)` over the leading axis of a tree of arrays, one part at a time.

  Args:
    function: part -> tree of arrays.
    parts: tree of arrays [P,...]; part i is the tree of their i-th entries.

  Returns:
    A tree like the one that `function` returns.
  """
  first = jax.tree.map(lambda field: field[0], parts)
  zero = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
  )

  def add(total: Any, part: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, function(part)), None

  total, _ = jax.lax.scan(add, zero, parts)
  return total


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns `total / weight`, or 0 where the weight is 0."""
  return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)
