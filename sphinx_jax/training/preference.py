"""DPO (arXiv 2305.18290): training on pairs of a better and a worse answer, without a reward model.

The reference is the model without its adapters, so no second model is in memory. A batch of pairs
is described in core/batch.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sphinx_jax.core import trees
from sphinx_jax.models import adapters
from sphinx_jax.models.families import Forward
from sphinx_jax.training import loss as losses
from sphinx_jax.training.step import Apply, Batch, Objective

_SHORTEST = 4  # Positions of a pair: two answers of a token, each behind BOS.


def objective(
  apply: Apply,
  tasks: int,
  beta: float,
  chunk: int = 0,
  encode: Callable[[dict, Batch], Batch] | None = None,
) -> Objective:
  """The objective of DPO: the mean over pairs of -log sigmoid(reward margin).

  The reward of an answer is beta times its log-probability over that of the reference. Besides
  those of `Objective`, the sums have means of the reward margin, of whether the chosen answer has
  the larger reward ('accuracy'), and of the log-probabilities of both answers.

  Args:
    apply: the model up to its hidden states, and the matrix that turns them into logits.
    tasks: number of tasks in the mixture.
    beta: how strongly the model is held at the reference.
    chunk: number of positions whose logits exist at one time, see `loss.sums`.
    encode: (parameters, batch) -> batch with what the model and its reference make of images, if
      that is the same; None: each of them reads the images.
  """

  def sums(params: dict, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
    batch = batch if encode is None else encode(params, batch)
    policy = answers(_losses(apply(params, batch, key), batch, chunk), batch)
    reference = answers(_losses(apply(_reference(params), batch, None), batch, chunk), batch)
    return pair_sums(policy, jax.lax.stop_gradient(reference), batch, tasks, beta)

  return Objective(lambda batch: _is_pair(batch).sum().astype(jnp.float32), sums)


def _losses(forward: Forward, batch: Batch, chunk: int) -> jax.Array:
  return losses.per_position(forward.hidden_states, forward.matrices, batch, chunk)


def _reference(params: dict) -> dict:
  """The parameters without adapters."""
  flat = trees.flatten(params)
  return trees.unflatten({path: x for path, x in flat.items() if not adapters.is_adapter(path)})


def _pairs(batch: Batch) -> int:
  """Most pairs in a row of a batch (P)."""
  return max(batch['segments'].shape[1] // _SHORTEST, 1)


def _is_pair(batch: Batch) -> jax.Array:
  """bool[B,P]: whether a row has so many pairs."""
  last_segment = 2 * (1 + jnp.arange(_pairs(batch)))
  return batch['segments'].max(axis=1, keepdims=True) >= last_segment


def answers(losses: jax.Array, batch: Batch) -> jax.Array:
  """Log-probabilities of the chosen and the rejected answer of every pair.

  Segments are selected by comparison: a scatter would add in no fixed order on a GPU.

  Args:
    losses: float32[B,T], cross entropy of the answers' tokens, 0 elsewhere.
    batch: reads `segments`.

  Returns:
    float32[B,P,2], 0 where there is no pair.
  """
  numbers = 1 + jnp.arange(2 * _pairs(batch))
  is_in = batch['segments'][..., None] == numbers
  log_probability = -jnp.where(is_in, losses[..., None], 0).sum(axis=1)
  return log_probability.reshape(len(losses), -1, 2)


def pair_sums(
  policy: jax.Array, reference: jax.Array, batch: Batch, tasks: int, beta: float
) -> dict[str, jax.Array]:
  """The sums of `objective` over the pairs of a batch.

  Args:
    policy: float32[B,P,2], result of `answers` of the model.
    reference: float32[B,P,2], the same of the reference.
    batch: reads `segments` and `task`.
    tasks: number of tasks in the mixture.
    beta: see `objective`.
  """
  is_pair = _is_pair(batch)
  rewards = beta * (policy - reference)
  margin = rewards[..., 0] - rewards[..., 1]
  loss = jnp.where(is_pair, -jax.nn.log_sigmoid(margin), 0)
  chosen_segment = 1 + 2 * jnp.arange(_pairs(batch))
  is_chosen = batch['segments'][..., None] == chosen_segment
  task = jnp.where(is_chosen, batch['task'][..., None], 0).max(axis=1)
  is_task = (task[..., None] == jnp.arange(tasks)) & is_pair[..., None]

  def total(values: jax.Array) -> jax.Array:
    return jnp.where(is_pair, values, 0).sum(dtype=jnp.float32)

  return {
    'loss': loss.sum(),
    'weight': total(is_pair),
    'task_loss': jnp.where(is_task, loss[..., None], 0).sum(axis=(0, 1)),
    'task_weight': is_task.sum(axis=(0, 1), dtype=jnp.float32),
    f'{losses.MEAN}reward_margin': total(margin),
    f'{losses.MEAN}accuracy': total(margin > 0),
    f'{losses.MEAN}logp_chosen': total(policy[..., 0]),
    f'{losses.MEAN}logp_rejected': total(policy[..., 1]),
  }
