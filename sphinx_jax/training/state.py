"""The state of a run. Trained and frozen parameters are separate: frozen ones have no gradient."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sphinx_jax.core import errors, trees

CHOICES = ('train', 'frozen')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Everything an update changes, and the frozen parameters it reads.

  Attributes:
    step: int32[], number of finished updates.
    trained: tree of float32 parameters.
    frozen: tree of parameters, stored in the compute dtype.
    opt_state: the optimizer's state, of the trained parameters only.
  """

  step: jax.Array
  trained: dict
  frozen: dict
  opt_state: Any

  @property
  def params(self) -> dict:
    """Trained and frozen parameters as one tree, as the model takes them."""
    return merge(self.trained, self.frozen)


def split(params: Mapping, trainable: Sequence[tuple[str, str]]) -> tuple[dict, dict]:
  """Splits a parameter tree into (trained, frozen).

  Args:
    params: tree of parameters, or of anything that each parameter has one of.
    trainable: pairs (regex of the whole path, 'train' or 'frozen'); the first match decides.

  Raises:
    SphinxError: no pattern matches a parameter, or a value is neither 'train' nor 'frozen'.
  """
  for _, choice in trainable:
    if choice not in CHOICES:
      raise errors.unknown("value in 'trainable'", choice, CHOICES)
  parts = {choice: {} for choice in CHOICES}
  for path, leaf in trees.flatten(params).items():
    parts[trees.first_match(trainable, path)][path] = leaf
  return trees.unflatten(parts['train']), trees.unflatten(parts['frozen'])


def check(params: Mapping, trainable: Sequence[tuple[str, str]]) -> None:
  """Checks that every pattern matches a parameter, and that some parameter is trained.

  The encoders may be frozen in a model that has none, as shipped configs do.

  Raises:
    SphinxError: a pattern matches nothing, or all is frozen.
  """
  trees.check_rules('trainable', trainable, [*trees.flatten(params), 'encoders/none'])
  if not split(params, trainable)[0]:
    raise errors.make(
      'trainable', 'every parameter frozen', 'at least one to train', "give a pattern 'train'"
    )


def merge(trained: Mapping, frozen: Mapping) -> dict:
  """The inverse of `split`."""
  return trees.unflatten(trees.flatten(trained) | trees.flatten(frozen))


def storage_dtypes(
  abstract: Mapping, trainable: Sequence[tuple[str, str]], compute_dtype: str
) -> dict:
  """Shapes of parameters with their storage dtype: float32 if trained, the compute dtype if frozen.

  Args:
    abstract: tree of ShapeDtypeStruct. Leaves that are not floating point keep their dtype.
    trainable: see `split`.
    compute_dtype: name of the dtype of frozen parameters.

  Returns:
    The tree with the new dtypes.
  """

  def cast(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(leaf.shape, dtype if is_float else leaf.dtype)

  trained, frozen = split(abstract, trainable)
  return merge(
    jax.tree.map(lambda leaf: cast(leaf, jnp.float32), trained),
    jax.tree.map(lambda leaf: cast(leaf, jnp.dtype(compute_dtype)), frozen),
  )
