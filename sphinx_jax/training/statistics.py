"""Statistics of a model on data, for mixes of weights that look at data.

`fisher` makes the diagonal of the empirical Fisher information (arXiv 2111.09832, section 3):
squared gradients of the log-likelihood of single examples, with the answers of the data as labels.
`grams` makes the Gram matrices of the inputs of linear layers (arXiv 2212.09849). Both are sums
over examples or positions, to be added over batches.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sphinx_jax.core import trees
from sphinx_jax.models import families, multimodal
from sphinx_jax.training import loss as losses, state as states, step as steps

# (sums, trained parameters, frozen parameters, batch) -> new sums.
Add = Callable[[dict, dict, dict, steps.Batch], dict]


class Statistic(NamedTuple):
  """How a statistic is computed.

  Attributes:
    add: adds the sums of a batch.
    examples: batch -> int32[], the number of examples over which it sums.
  """

  add: Add
  examples: Callable[[steps.Batch], jax.Array]


def labelled_examples(batch: steps.Batch) -> jax.Array:
  """bool[B,T+1]: whether segment n of a row, from 0 on, is an example with labels."""
  segments = jnp.arange(batch['segments'].shape[1] + 1)
  is_of = batch['segments'][..., None] == segments
  labelled = (batch['loss_weight'] > 0) & (batch['segments'] > 0)
  return (is_of & labelled[..., None]).any(axis=1)


def fisher(
  apply: steps.Apply, microbatches: int, chunk: int = 0, encode: Callable | None = None
) -> Statistic:
  """Squared gradients of the log-likelihood of every example with labels.

  An example's log-likelihood is the sum over its labels, whatever weights training gave them. Each
  example costs a forward and a backward pass over its row, in which the labels of others have no
  weight: attention does not cross segments, so nothing of them is in its gradient.

  Args:
    apply: the model, see `step.likelihood`.
    microbatches: number of them in a batch. One row of each microbatch has a gradient at a time, so
      a microbatch best has as many rows as the mesh splits a batch into.
    chunk: see `loss.sums`.
    encode: (parameters, microbatch) -> the microbatch with the results of its frozen encoders,
      which all its examples share; None: every example encodes images.

  Returns:
    A statistic whose sums are path -> float32, of the trained parameters.
  """

  def loss(trained: dict, frozen: dict, batch: steps.Batch) -> jax.Array:
    forward = apply(states.merge(trained, frozen), batch, None)
    return losses.sums(forward.hidden_states, forward.matrices, batch, 1, chunk)['loss']

  def add_microbatch(sums: dict, trained: dict, frozen: dict, batch: steps.Batch) -> dict:
    if encode is not None:
      batch = encode(states.merge(trained, frozen), batch)
    is_labelled, segments = labelled_examples(batch), batch['segments']
    rows, count = is_labelled.shape
    # Examples with labels come first: int32 of row * count + segment.
    order = jnp.argsort(~is_labelled.reshape(-1), stable=True)

    def add_example(number: jax.Array, sums: dict) -> dict:
      row, segment = jnp.divmod(order[number], count)
      is_own = (jnp.arange(rows)[:, None] == row) & (segments == segment)
      weight = (is_own & (batch['loss_weight'] > 0)).astype(jnp.float32)
      gradient = jax.grad(loss)(trained, frozen, {**batch, 'loss_weight': weight})
      flat = trees.flatten(gradient)
      return {path: total + jnp.square(flat[path]) for path, total in sums.items()}

    return jax.lax.fori_loop(0, is_labelled.sum(), add_example, sums)

  return Statistic(
    functools.partial(_add_microbatches, add_microbatch, microbatches),
    lambda batch: labelled_examples(batch).sum(),
  )


def grams(model: multimodal.Multimodal, microbatches: int) -> Statistic:
  """Gram matrices of the inputs of linear layers.

  Args:
    model: from `families.build`.
    microbatches: number of them in a batch.

  Returns:
    A statistic whose sums have some of the paths of `families.grams`.
  """

  def add_microbatch(sums: dict, trained: dict, frozen: dict, batch: steps.Batch) -> dict:
    found = families.grams(model, states.merge(trained, frozen), batch)
    return {path: total + found[path] for path, total in sums.items()}

  return Statistic(
    functools.partial(_add_microbatches, add_microbatch, microbatches),
    lambda batch: batch['segments'].max(axis=1).sum(),
  )


def _add_microbatches(
  add: Add, count: int, sums: dict, trained: dict, frozen: dict, batch: steps.Batch
) -> dict:
  def body(sums: dict, microbatch: steps.Batch) -> tuple[dict, None]:
    return add(sums, trained, frozen, microbatch), None

  return jax.lax.scan(body, sums, steps.microbatches(batch, count))[0]
