"""Weights of tasks from their held-out losses: a task that is behind its reference gets more.

The references are the losses of a finished run with fixed weights, as in DoReMi (arXiv 2305.10429).
Without them, tasks whose answers cannot be predicted would get the most. As in Sheared LLaMA (arXiv
2310.06694, section 2.2), the losses are held-out ones at a few updates of the run itself, so no
second model is trained. Unlike there, new weights do not depend on earlier ones: an inexact loss
acts only until the next weights, and a run that reaches its references returns to its first
weights. The change is limited, because early in a run a rare task may be far behind.
"""

import math
from collections.abc import Mapping

from sphinx_jax.core import errors


def learned_weights(
  weights: Mapping[str, float],
  losses: Mapping[str, float],
  references: Mapping[str, float],
  rate: float,
  limit: float,
) -> dict[str, float]:
  """Returns new weights of the tasks.

  Let p be the shares of the first weights, e = max(loss - reference, 0) the excess losses and m
  their mean, weighted by p. The new weights are p * exp(rate * (e - m)), scaled to sum to 1, with
  the factor exp(...) clipped to [1 / limit, limit]. So no weight is below p / limit**2.

  Args:
    weights: task -> first weight, at any scale. A task of weight 0 keeps it and needs no loss.
    losses: task -> held-out loss in nats.
    references: task -> the loss that it should reach, in nats.
    rate: change by excess loss, 1/nats. A task that is 1 / rate behind another one grows by a
      factor of e against it, up to the limit.
    limit: largest factor, at least 1.

  Returns:
    Task -> weight; they sum to 1.

  Raises:
    SphinxError: a loss is not finite.
  """
  used = {task: weight for task, weight in weights.items() if weight}
  for task in used:
    if not math.isfinite(losses[task]):
      raise errors.make(
        f"task '{task}'",
        f'a held-out loss of {losses[task]:g}',
        'a finite number, from which its weight is learned',
        'look at its validation set, or lower optimizer.lr',
      )
  excess = {task: max(losses[task] - references[task], 0.0) for task in used}
  mean = sum(weight * excess[task] for task, weight in used.items()) / sum(used.values())
  largest = math.log(limit)
  for task in used:
    used[task] *= math.exp(min(max(rate * (excess[task] - mean), -largest), largest))
  total = sum(used.values())
  return {task: used.get(task, 0.0) / total for task in weights}
