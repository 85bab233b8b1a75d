"""The loss: float32 cross entropy of the next token, a mean over the weights of the global batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """float32[B,T], in nats, from logits float[B,T,vocab] and targets int32[B,T].

  The target's logit is picked by comparison, not by gather, so that the vocabulary may be split over the mesh.
  """
  logits = logits.astype(jnp.float32)
  chosen = jnp.arange(logits.shape[-1], dtype=targets.dtype) == targets[..., None]
  return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0), axis=-1)


def sums(logits: jax.Array, batch: Mapping[str, jax.Array], tasks: int) -> dict[str, jax.Array]:
  """Weighted sums over a batch, to be added over microbatches and divided at the end.

  Args:
    logits: float[B,T,vocab].
    batch: see core/batch.py; `targets`, `loss_weight` and `task` are read.
    tasks: number of tasks in the mixture.

  Returns:
    `loss` float32[] = sum(weight * cross entropy), `weight` float32[] = sum(weight), and both per task as
    `task_loss`, `task_weight` float32[tasks].
  """
  weight = batch['loss_weight'].astype(jnp.float32)
  loss = weight * cross_entropy(logits, batch['targets'])
  member = (batch['task'][..., None] == jnp.arange(tasks, dtype=jnp.int32)).astype(jnp.float32)
  return {
    'loss': loss.sum(),
    'weight': weight.sum(),
    'task_loss': jnp.einsum('bt,btk->k', loss, member),
    'task_weight': jnp.einsum('bt,btk->k', weight, member),
  }


def chunked_sums(
  states: jax.Array,
  head: Callable[[jax.Array], jax.Array],
  batch: Mapping[str, jax.Array],
  tasks: int,
  chunk: int,
) -> dict[str, jax.Array]:
  """`sums` of head(states), without the logits of all positions ever being there at once.

  The logits of one chunk of positions are made, summed up and dropped, and made again for the gradient.

  Args:
    states: [B,T,D], what the head reads.
    head: [B,t,D] -> logits float[B,t,vocab].
    batch: as in `sums`.
    tasks: number of tasks in the mixture.
    chunk: positions of a row taken at once; 0 takes all of them, and keeps their logits.

  Returns:
    As `sums`.

  Raises:
    SphinxError: a chunk that does not divide T.
  """
  length = states.shape[1]
  if not chunk:
    return sums(head(states), batch, tasks)
  if length % chunk:
    raise errors.make(
      'loss_chunk', f'{chunk}', f'0 or a divisor of batch.seq_len {length}', 'change one of them'
    )
  fields = {name: batch[name] for name in ('targets', 'loss_weight', 'task')} | {'states': states}
  pieces = {
    name: field.reshape(field.shape[0], length // chunk, chunk, *field.shape[2:]).swapaxes(0, 1)
    for name, field in fields.items()
  }

  @jax.checkpoint
  def one(piece: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return sums(head(piece['states']), piece, tasks)

  zero = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(one, jax.tree.map(lambda field: field[0], pieces)),
  )
  return jax.lax.scan(
    lambda total, piece: (jax.tree.map(jnp.add, total, one(piece)), None), zero, pieces
  )[0]


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
  """`total / weight`, and 0 where nothing has weight."""
  return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)
