"""AdamW or Muon with warmup and cosine decay, clipping by global norm, and no decay of norms, biases and vectors.

Defaults of the official fine-tuning recipe (FACTS, from the official README): AdamW, betas (0.9, 0.95), clip 8, weight
decay 0, cosine to 0 after a linear warmup. Muon is for runs in which nothing is pretrained.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import NamedSharding

from sphinx_jax.core import errors, trees

NAMES = ('adamw', 'muon')
_UNDECAYED = ('bias', 'scale')
_MUON_RMS = 0.2  # Of an entry of Muon's step at rate 1, as AdamW's is, so that one rate serves both (arXiv 2502.16982).


def schedule(lr: float, warmup: int, decay_to: float, steps: int) -> optax.Schedule:
  """Learning rate by update: linear to `lr` over `warmup` updates, then a cosine to `decay_to * lr` at the last one.

  The first update already moves: its rate is lr / warmup, not 0.
  """

  def rate(count: jax.Array) -> jax.Array:
    done = (count - warmup + 1) / max(steps - warmup, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
    return lr * jnp.where(
      count < warmup, (count + 1) / max(warmup, 1), decay_to + (1 - decay_to) * cosine
    )

  return rate


def decays(logical_axes: Mapping) -> dict:
  """Tree of bool: whether weight decay applies to a parameter, from the names of its dimensions.

  Matrices and kernels decay. Whatever has fewer than two dimensions besides the stacked 'layers' does not, nor does
  anything called bias or scale.
  """
  flat = trees.flatten(logical_axes)
  return trees.unflatten(
    {
      path: sum(name != 'layers' for name in names) >= 2
      and path.rsplit('/', 1)[-1] not in _UNDECAYED
      for path, names in flat.items()
    }
  )


def muon_axes(logical_axes: Mapping) -> dict:
  """Tree of the (input, output) dimensions of what Muon moves, None for what it leaves to AdamW.

  Muon moves kernels between two named dimensions; those without a name, and the stacked 'layers', count matrices. What
  reads or writes the vocabulary, and kernels of patches, stay with AdamW.
  """
  flat = {}
  for path, names in trees.flatten(logical_axes).items():
    named = [index for index, name in enumerate(names) if name not in (None, 'layers')]
    matrix = path.endswith('kernel') and len(named) == 2 and 'vocab' not in names
    flat[path] = optax.contrib.MuonDimensionNumbers(*named) if matrix else None
  return trees.unflatten(flat)


def make_optimizer(
  name: str,
  rate: optax.Schedule,
  logical_axes: Mapping,
  betas: Sequence[float],
  weight_decay: float,
  clip: float,
  moment_dtype: str = 'float32',
) -> optax.GradientTransformation:
  """The optimizer of the trained tree.

  Args:
    name: one of NAMES.
    rate: learning rate by update.
    logical_axes: names of the dimensions of the trained parameters.
    betas: decay of AdamW's first and second moment.
    weight_decay: times the learning rate, subtracted from what `decays` names.
    clip: largest global norm of the gradient.
    moment_dtype: of the first moment; the second stays float32, for its small changes vanish in bfloat16.

  Raises:
    SphinxError: an unknown name, a clip that is not positive.
  """
  if name not in NAMES:
    raise errors.unknown('optimizer.name', name, NAMES)
  if not clip > 0:
    raise errors.make(
      'optimizer.clip', f'{clip}', 'a positive number', 'set a large one not to clip'
    )
  moment_dtype = jnp.dtype(moment_dtype)
  if (
    name == 'muon'
  ):  # A rate of -1 leaves the direction alone: decay and rate are the same for both, below.
    direction = optax.contrib.muon(
      -1.0,
      mu_dtype=moment_dtype,
      adam_b1=betas[0],
      adam_b2=betas[1],
      muon_weight_dimension_numbers=muon_axes(logical_axes),
      consistent_rms=_MUON_RMS,
    )
  else:
    direction = optax.scale_by_adam(b1=betas[0], b2=betas[1], mu_dtype=moment_dtype)
  return optax.chain(
    optax.clip_by_global_norm(clip),
    direction,
    optax.add_decayed_weights(weight_decay, mask=decays(logical_axes)),
    optax.scale_by_learning_rate(rate),
  )


def state_shardings(
  optimizer: optax.GradientTransformation, abstract: Any, layouts: Any, other: NamedSharding
) -> Any:
  """Layout of the optimizer's state: moments lie as their parameters do, counts as `other` (a copy everywhere).

  A moment is known by the names that end its path, which are its parameter's: optax.tree_map_params cannot open Muon's
  state, in which some parameters are missing.
  """
  by_path = dict(jax.tree_util.tree_leaves_with_path(layouts))

  def find(path: tuple, _: Any) -> NamedSharding:
    names = itertools.takewhile(lambda key: isinstance(key, jax.tree_util.DictKey), reversed(path))
    return by_path.get(tuple(names)[::-1], other)

  return jax.tree_util.tree_map_with_path(find, jax.eval_shape(optimizer.init, abstract))
