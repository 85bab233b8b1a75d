"""Dynamic loss scaling for float16 (arXiv 1710.03740), whose range is too small for gradients.

The loss is multiplied by a scale so that small gradients do not vanish. An update whose gradients
overflow is skipped and halves the scale; many good ones double it. The scale is a part of the
optimizer's state, so that checkpoints have it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

FIRST = 2.0**15
LEAST = 1.0  # Gradients that overflow without a scale are an error, not a reason to wait.
INTERVAL = 2000  # Good updates until the scale doubles.
_MOST_SKIPPED = 2**31 - 2  # One after the other: as many as there are.


class ScaleState(NamedTuple):
  """The state of `dynamic`.

  Attributes:
    scale: float32[], of the next loss.
    good: int32[], good updates since the scale changed.
    inner: state of the optimizer, with the number of skipped updates.
  """

  scale: jax.Array
  good: jax.Array
  inner: optax.ApplyIfFiniteState


def dynamic(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """An optimizer of the gradients of a loss that is multiplied by `ScaleState.scale`.

  Where a gradient is not finite, its updates are 0 and its state stays as it is.

  Args:
    optimizer: of the gradients of the loss itself.
  """
  guarded = optax.apply_if_finite(optimizer, _MOST_SKIPPED)

  def init(params: Any) -> ScaleState:
    return ScaleState(jnp.float32(FIRST), jnp.int32(0), guarded.init(params))

  def update(scaled: Any, state: ScaleState, params: Any = None) -> tuple[Any, ScaleState]:
    gradient = jax.tree.map(lambda leaf: leaf / state.scale, scaled)
    updates, inner = guarded.update(gradient, state.inner, params)
    is_good = inner.last_finite
    good = jnp.where(is_good, state.good + 1, 0)
    has_grown = good == INTERVAL
    factor = jnp.where(is_good, jnp.where(has_grown, 2.0, 1.0), 0.5)
    scale = jnp.maximum(state.scale * factor, LEAST)
    return updates, ScaleState(scale, jnp.where(has_grown, 0, good), inner)

  return optax.GradientTransformation(init, update)


def metrics(before: ScaleState, after: ScaleState, scaled_norm: jax.Array) -> dict[str, jax.Array]:
  """Metrics of an update.

  Args:
    before: state before the update.
    after: state after it.
    scaled_norm: norm of the gradients of the scaled loss.

  Returns:
    `grad_norm`, of the gradients of the loss itself: 0 of a skipped update, but what it is if the
    scale was the least; `skipped`, 1 or 0; `loss_scale` of the next update.
  """
  is_good = after.inner.last_finite
  is_final = is_good | (before.scale <= LEAST)
  return {
    'grad_norm': jnp.where(is_final, scaled_norm / before.scale, 0),
    'skipped': 1 - is_good.astype(jnp.int32),
    'loss_scale': after.scale,
  }
