"""Weights of tasks from their held-out losses: a task that is behind its reference gets more.

The references are the losses of a finished run with fixed weights, as in DoReMi (arXiv 2305.10429).
Without them, tasks whose answers cannot be predicted would get the most. As in Sheared LLaMA (arXiv
2310.06694, section 2.2), the losses are held-out ones at a few steps of the run itself, so no
second model is trained. Unlike both, new weights do not depend on earlier ones. An inexact loss is
therefore forgotten at the next step, and a run that reaches its references returns to its first
weights.
"""

import math
from collections.abc import Mapping

from sphinx_jax.core import errors


def learned_weights(
  weights: Mapping[str, float],
  losses: Mapping[str, float],
  references: Mapping[str, float],
  rate: float,
  floor: float,
) -> dict[str, float]:
  """Returns new weights of the tasks.

  With shares p of the first weights and excess losses e = max(loss - reference, 0), the shares
  p * exp(rate * e) / sum(p * exp(rate * e)) maximize the mean excess loss less the Kullback-Leibler
  divergence from p divided by `rate`. The new weights are `floor` times p and the rest of these.

  Args:
    weights: task -> first weight, at any scale. A task of weight 0 keeps it and needs no loss.
    losses: task -> held-out loss in nats.
    references: task -> the loss that it should reach, in nats.
    rate: change by excess loss, 1/nats. A task that is 1 / rate behind another one grows by a
      factor of e against it.
    floor: share in [0, 1] of its first weight that every task keeps.

  Returns:
    Task -> weight; they sum to 1.

  Raises:
    SphinxError: a loss is not finite.
  """
  total = sum(weights.values())
  shares = {task: weight / total for task, weight in weights.items()}
  excess = {}
  for task in (task for task, share in shares.items() if share):
    if not math.isfinite(losses[task]):
      raise errors.make(
        f"task '{task}'",
        f'a held-out loss of {losses[task]:g}',
        'a finite number, from which its weight is learned',
        'look at its validation set, or lower optimizer.lr',
      )
    excess[task] = max(losses[task] - references[task], 0.0)
  largest = max(excess.values())  # Subtracted, so that exp does not overflow.
  tilted = {
    task: share * math.exp(rate * (excess[task] - largest)) if share else 0.0
    for task, share in shares.items()
  }
  scale = (1 - floor) / sum(tilted.values())
  return {task: floor * share + scale * tilted[task] for task, share in shares.items()}
