"""The loss: float32 cross entropy of the next token, a mean over the weights of the global batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


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
  return {'loss': loss.sum(), 'weight': weight.sum(), 'task_loss': jnp.einsum('bt,btk->k', loss, member),
          'task_weight': jnp.einsum('bt,btk->k', weight, member)}


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
  """`total / weight`, and 0 where nothing has weight."""
  return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)
