"""Rows of new tokens beside the frozen tables of old ones.

A run that trains adapters keeps the embedding and the LM head frozen. The rows of the tokens that
it adds are leaves of their own, so that they alone have gradients and moments. Their ids are those
behind the old ones. Elsewhere, in checkpoints with all weights and in models that answer, the
tables have all rows.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sphinx_jax.core import trees

EMBED, OUTPUT = 'embed_new', 'output_new'  # Parameters of the language model.


class Table(NamedTuple):
  """A parameter with an entry for every token.

  Attributes:
    new: path of the leaf of new tokens.
    axis: its dimension of tokens.
    names: names of the dimensions of that leaf. It is small, so its tokens are not split.
  """

  new: str
  axis: int
  names: tuple[str | None, ...]


TABLES = {
  'llm/embed': Table(f'llm/{EMBED}', 0, (None, 'lookup')),
  'llm/output/kernel': Table(f'llm/{OUTPUT}', 1, ('embed', None)),
}
# What trains them, of the setting `trainable`.
TRAINED = (f'llm/({EMBED}|{OUTPUT})', 'train')


def extend(shapes: Mapping, logical_axes: Mapping, count: int) -> tuple[dict, dict]:
  """Splits the tables of a model into those of old tokens and leaves of the last ones, in float32.

  Args:
    shapes: tree of ShapeDtypeStruct of a model with all tokens.
    logical_axes: tree of the names of its dimensions.
    count: number of new tokens.
  """
  shapes, axes = trees.flatten(shapes), trees.flatten(logical_axes)
  for path, table in TABLES.items():
    whole = shapes[path]
    old, new = [*whole.shape], [*whole.shape]
    old[table.axis], new[table.axis] = whole.shape[table.axis] - count, count
    shapes[path] = jax.ShapeDtypeStruct(tuple(old), whole.dtype)
    shapes[table.new] = jax.ShapeDtypeStruct(tuple(new), jnp.float32)
    axes[table.new] = table.names
  return trees.unflatten(shapes), trees.unflatten(axes)
