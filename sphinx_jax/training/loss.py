"""The loss: float32 cross entropy of the next token, a weighted mean over the global batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors


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
  is_target = jnp.arange(logits.shape[-1], dtype=targets.dtype) == targets[..., None]
  return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(is_target, logits, 0), axis=-1)


def sums(logits: jax.Array, batch: Mapping[str, jax.Array], tasks: int) -> dict[str, jax.Array]:
  """Weighted sums over a batch, to be added over microbatches and divided at the end.

  Args:
    logits: float[B,T,vocab].
    batch: see core/batch.py; reads `targets`, `loss_weight` and `task`.
    tasks: number of tasks in the mixture.

  Returns:
    `loss` float32[] = sum(weight * cross entropy), `weight` float32[] = sum(weight), and both per
    task as `task_loss`, `task_weight` float32[tasks].
  """
  weight = batch['loss_weight'].astype(jnp.float32)
  loss = weight * cross_entropy(logits, batch['targets'])
  is_task = (batch['task'][..., None] == jnp.arange(tasks, dtype=jnp.int32)).astype(jnp.float32)
  return {
    'loss': loss.sum(),
    'weight': weight.sum(),
    'task_loss': jnp.einsum('bt,btk->k', loss, is_task),
    'task_weight': jnp.einsum('bt,btk->k', weight, is_task),
  }


def chunked_sums(
  hidden: jax.Array,
  lm_head: Callable[[jax.Array], jax.Array],
  batch: Mapping[str, jax.Array],
  tasks: int,
  chunk: int,
) -> dict[str, jax.Array]:
  """Computes `sums(lm_head(hidden), ...)` without ever holding the logits of all positions.

  The logits of one chunk of positions are computed, summed and dropped, and computed again for the
  gradient.

  Args:
    hidden: float[B,T,D], hidden states, the input of the LM head.
    lm_head: [B,t,D] -> logits float[B,t,vocab].
    batch: as in `sums`.
    tasks: number of tasks in the mixture.
    chunk: positions per chunk; 0 takes all at once and keeps their logits.

  Returns:
    As `sums`.

  Raises:
    SphinxError: the chunk does not divide T.
  """
  length = hidden.shape[1]
  if not chunk:
    return sums(lm_head(hidden), batch, tasks)
  if length % chunk:
    raise errors.make(
      'loss_chunk', f'{chunk}', f'0 or a divisor of batch.seq_len {length}', 'change one of them'
    )
  fields = {name: batch[name] for name in ('targets', 'loss_weight', 'task')} | {'hidden': hidden}
  chunks = {
    name: field.reshape(field.shape[0], length // chunk, chunk, *field.shape[2:]).swapaxes(0, 1)
    for name, field in fields.items()
  }

  @jax.checkpoint
  def chunk_sums(fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return sums(lm_head(fields['hidden']), fields, tasks)

  return sum_over(chunk_sums, chunks)


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
