"""The state of a run, with trained and frozen parameters apart: what is frozen has no gradient and no moments."""

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
    step: int32[], updates done.
    trained: tree of float32 parameters.
    frozen: tree of parameters at rest in the compute dtype.
    opt_state: of the optimizer, for the trained parameters only.
  """

  step: jax.Array
  trained: dict
  frozen: dict
  opt_state: Any

  @property
  def params(self) -> dict:
    """Trained and frozen parameters as the one tree that the model takes."""
    return merge(self.trained, self.frozen)


def split(params: Mapping, rules: Sequence[tuple[str, str]]) -> tuple[dict, dict]:
  """Parameters -> (trained, frozen) by ordered patterns `(regex of the whole path, 'train' | 'frozen')`, first match wins.

  Raises:
    SphinxError: a parameter no pattern covers, or a word that is neither 'train' nor 'frozen'.
  """
  for _, word in rules:
    if word not in CHOICES:
      raise errors.unknown("value in 'trainable'", word, CHOICES)
  parts = {word: {} for word in CHOICES}
  for path, leaf in trees.flatten(params).items():
    parts[trees.first_match(rules, path)][path] = leaf
  return trees.unflatten(parts['train']), trees.unflatten(parts['frozen'])


def merge(trained: Mapping, frozen: Mapping) -> dict:
  """The inverse of `split`."""
  return trees.unflatten(trees.flatten(trained) | trees.flatten(frozen))


def at_rest(abstract: Mapping, rules: Sequence[tuple[str, str]], dtype: str) -> dict:
  """Shapes of parameters with the dtype they have between updates: float32 if trained, the compute dtype if frozen."""

  def cast(leaf: jax.ShapeDtypeStruct, target: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
      leaf.shape, target if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    )

  trained, frozen = split(abstract, rules)
  return merge(
    jax.tree.map(lambda leaf: cast(leaf, jnp.float32), trained),
    jax.tree.map(lambda leaf: cast(leaf, jnp.dtype(dtype)), frozen),
  )
