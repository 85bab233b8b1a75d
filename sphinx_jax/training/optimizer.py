"""AdamW with warmup and cosine decay, clipping by global norm, and no decay of norms, biases and vectors.

Defaults of the official fine-tuning recipe (FACTS, from the official README): betas (0.9, 0.95), clip 8, weight decay 0,
cosine to 0 after a linear warmup.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from sphinx_jax.core import errors, trees

_UNDECAYED = ('bias', 'scale')


def schedule(lr: float, warmup: int, decay_to: float, steps: int) -> optax.Schedule:
  """Learning rate by update: linear to `lr` over `warmup` updates, then a cosine to `decay_to * lr` at the last one.

  The first update already moves: its rate is lr / warmup, not 0.
  """
  def rate(count: jax.Array) -> jax.Array:
    done = (count - warmup + 1) / max(steps - warmup, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
    return lr * jnp.where(count < warmup, (count + 1) / max(warmup, 1), decay_to + (1 - decay_to) * cosine)
  return rate


def decays(logical_axes: Mapping) -> dict:
  """Tree of bool: whether weight decay applies to a parameter, from the names of its dimensions.

  Matrices and kernels decay. Whatever has fewer than two dimensions besides the stacked 'layers' does not, nor does
  anything called bias or scale.
  """
  flat = trees.flatten(logical_axes)
  return trees.unflatten({
      path: sum(name != 'layers' for name in names) >= 2 and path.rsplit('/', 1)[-1] not in _UNDECAYED
      for path, names in flat.items()})


def make_optimizer(rate: optax.Schedule, decayed: Any, betas: Sequence[float], weight_decay: float, clip: float,
                   moment_dtype: str = 'float32') -> optax.GradientTransformation:
  """AdamW for the trained tree.

  Args:
    rate: learning rate by update.
    decayed: tree of bool like the trained parameters, from `decays`.
    betas: decay of the first and second moment.
    weight_decay: times the learning rate, subtracted from what `decayed` names.
    clip: largest global norm of the gradient.
    moment_dtype: of the first moment; the second stays float32, for its small changes vanish in bfloat16.

  Raises:
    SphinxError: a clip that is not positive.
  """
  if not clip > 0:
    raise errors.make('optimizer.clip', f'{clip}', 'a positive number', 'set a large one not to clip')
  return optax.chain(
      optax.clip_by_global_norm(clip),
      optax.scale_by_adam(b1=betas[0], b2=betas[1], mu_dtype=jnp.dtype(moment_dtype)),
      optax.add_decayed_weights(weight_decay, mask=decayed),
      optax.scale_by_learning_rate(rate))


def state_shardings(optimizer: optax.GradientTransformation, abstract: Any, layouts: Any, other: NamedSharding) -> Any:
  """Layout of the optimizer's state: moments lie as their parameters do, counts as `other` (a copy everywhere)."""
  return optax.tree_map_params(optimizer, lambda _, layout: layout, jax.eval_shape(optimizer.init, abstract), layouts,
                               transform_non_params=lambda _: other)
