"""AdamW or Muon with linear warmup, cosine decay and clipping by global norm.

Norms, biases and vectors do not decay. The defaults of the configs are those of the official
fine-tuning recipe (docs/official_sphinx.md, "Fine-tuning recipe"): AdamW, betas (0.9, 0.95),
clip 8, weight decay 0, cosine to 0 after a linear warmup. Muon is meant for runs without pretrained
parameters.
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
from sphinx_jax.models import adapters

NAMES = ('adamw', 'muon')
MOMENT_DTYPES = ('float32', 'bfloat16')
_UNDECAYED = ('bias', 'scale')
# Root mean square of an entry of Muon's step at rate 1. It equals AdamW's, so that one learning
# rate serves both (arXiv 2502.16982).
_MUON_RMS = 0.2


def schedule(lr: float, warmup: int, decay_to: float, steps: int) -> optax.Schedule:
  """Learning rate by update: linear warmup, then a cosine.

  The first update already moves: its rate is lr / warmup, not 0.

  Args:
    lr: the highest rate.
    warmup: number of updates of the linear part.
    decay_to: rate of the last update, as a share of `lr`.
    steps: number of updates of the run.
  """

  def rate(count: jax.Array) -> jax.Array:
    progress = jnp.clip((count - warmup + 1) / max(steps - warmup, 1), 0, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    warm = (count + 1) / max(warmup, 1)
    return lr * jnp.where(count < warmup, warm, decay_to + (1 - decay_to) * cosine)

  return rate


def decay_mask(logical_axes: Mapping) -> dict:
  """Tree of bool: whether weight decay applies to a parameter, from the names of its dimensions.

  Matrices and kernels decay. A parameter with fewer than two dimensions besides the stacked
  'layers' does not, nor does one with the name bias or scale.
  """
  mask = {}
  for path, names in trees.flatten(logical_axes).items():
    dimensions = sum(name != 'layers' for name in names)
    mask[path] = dimensions >= 2 and path.rsplit('/', 1)[-1] not in _UNDECAYED
  return trees.unflatten(mask)


def _second_matrices(logical_axes: Mapping) -> dict:
  """Tree of bool: whether a parameter is the second matrix of an adapter."""
  paths = trees.flatten(logical_axes)
  return trees.unflatten({path: path.endswith(f'/{adapters.B}') for path in paths})


def muon_dimensions(logical_axes: Mapping) -> dict:
  """Tree of the (input, output) dimensions of the parameters of Muon; None for those of AdamW.

  Muon moves kernels between two named dimensions. Dimensions without a name, and those of stacks,
  count matrices. AdamW moves kernels that read or write the vocabulary, and kernels of
  patches.
  """
  dimensions = {}
  for path, names in trees.flatten(logical_axes).items():
    named = [index for index, name in enumerate(names) if name not in (None, *adapters.STACKS)]
    is_matrix = path.endswith('kernel') and len(named) == 2 and 'vocab' not in names
    dimensions[path] = optax.contrib.MuonDimensionNumbers(*named) if is_matrix else None
  return trees.unflatten(dimensions)


def make_optimizer(
  name: str,
  rate: optax.Schedule,
  logical_axes: Mapping,
  betas: Sequence[float],
  weight_decay: float,
  clip: float,
  moment_dtype: str = 'float32',
  b_rate: float = 1.0,
) -> optax.GradientTransformation:
  """Builds the optimizer of the trained tree.

  Args:
    name: one of NAMES.
    rate: learning rate by update.
    logical_axes: tree of the dimension names of the trained parameters.
    betas: decay rates of AdamW's first and second moment.
    weight_decay: factor of the parameters that `decay_mask` selects. Their product with it and the
      learning rate is subtracted from them.
    clip: largest global norm of the gradient.
    moment_dtype: dtype of the first moment. The second one stays float32, because its small changes
      would vanish in bfloat16.
    b_rate: learning rate of the second matrix of adapters over `rate` (LoRA+, arXiv 2402.12354).

  Raises:
    SphinxError: unknown name, or a clip that is not positive.
  """
  if name not in NAMES:
    raise errors.unknown('optimizer.name', name, NAMES)
  if not clip > 0:
    raise errors.make(
      'optimizer.clip', f'{clip}', 'a positive number', 'set a large one not to clip'
    )
  moment_dtype = jnp.dtype(moment_dtype)
  if name == 'muon':
    # optax's muon multiplies by its own rate; -1 leaves the direction unchanged. Decay and learning
    # rate follow below, the same for both optimizers.
    direction = optax.contrib.muon(
      -1.0,
      mu_dtype=moment_dtype,
      adam_b1=betas[0],
      adam_b2=betas[1],
      muon_weight_dimension_numbers=muon_dimensions(logical_axes),
      consistent_rms=_MUON_RMS,
    )
  else:
    direction = optax.scale_by_adam(b1=betas[0], b2=betas[1], mu_dtype=moment_dtype)
  return optax.chain(
    optax.clip_by_global_norm(clip),
    direction,
    optax.add_decayed_weights(weight_decay, mask=decay_mask(logical_axes)),
    *([optax.masked(optax.scale(b_rate), _second_matrices(logical_axes))] if b_rate != 1 else []),
    optax.scale_by_learning_rate(rate),
  )


def state_shardings(
  optimizer: optax.GradientTransformation,
  abstract: Any,
  param_shardings: Any,
  other: NamedSharding,
) -> Any:
  """The shardings of the optimizer's state.

  A moment is matched to its parameter by the dictionary keys that end its path.
  optax.tree_map_params does not work here: Muon's state lacks some of the parameters.

  Args:
    optimizer: from `make_optimizer`.
    abstract: tree of ShapeDtypeStruct of the trained parameters.
    param_shardings: their shardings; moments get the same.
    other: sharding of everything else, for instance counts.
  """
  by_path = dict(jax.tree_util.tree_leaves_with_path(param_shardings))

  def find(path: tuple, _: Any) -> NamedSharding:
    reversed_keys = itertools.takewhile(
      lambda key: isinstance(key, jax.tree_util.DictKey), reversed(path)
    )
    return by_path.get(tuple(reversed_keys)[::-1], other)

  return jax.tree_util.tree_map_with_path(find, jax.eval_shape(optimizer.init, abstract))
