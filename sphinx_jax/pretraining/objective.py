"""What an objective of pretraining is, and what objectives share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from sphinx_jax.core import errors, tables
from sphinx_jax.models import families
from sphinx_jax.parallel import placement
from sphinx_jax.training import step as steps
from sphinx_jax.training.state import State

# Each makes an Objective from (model config, its own section of the recipe's step, longest text).
OBJECTIVES = tables.Table(
  'objective of pretraining',
  {
    'contrast': 'sphinx_jax.pretraining.contrast:objective',
    'distill': 'sphinx_jax.pretraining.distill:objective',
    'captions': 'sphinx_jax.pretraining.captions:objective',
  },
)

Sums = dict[str, jax.Array]


def _as_it_is(state: State, metrics: Sums) -> tuple[State, Sums]:
  return state, metrics


@dataclasses.dataclass(frozen=True)
class Objective:
  """Encoders, what is trained beside them and thrown away, and the loss.

  Attributes:
    init: random key -> parameters in flax boxes with their logical names.
    loss: see `training.step.Objective`.
    losses: names of the losses in `task_loss` of its sums.
    trained: parameters -> name of an encoder -> its parameters.
    trainable: as in the config of a run.
    after: (state after an update, metrics) -> both as they are kept. It moves what follows the
      trained parameters without a gradient.
  """

  init: Callable[[jax.Array], dict]
  loss: steps.Objective
  losses: tuple[str, ...]
  trained: Callable[[Mapping], dict[str, dict]]
  trainable: tuple[tuple[str, str], ...] = (('.*', 'train'),)
  after: Callable[[State, Sums], tuple[State, Sums]] = _as_it_is


def rows(batch: steps.Batch) -> jax.Array:
  """The number of examples of a batch: every row has one."""
  return jnp.float32(batch['images'].shape[0])


def encode(model: FrozenConfigDict, name: str, images: jax.Array) -> Any:
  """The output of an encoder for all views of images, inside of a module that owns the encoder.

  Args:
    model: the model config.
    name: of the encoder.
    images: uint8[B,Y,X,3], Y = X = image_size.

  Returns:
    Its arrays, each [B,V,...].
  """
  return encode_views(families.encoder(model, name), families.encoder_views(model, name, images))


def encode_views(encoder: nn.Module, views: jax.Array) -> Any:
  """The output of an encoder for normalized views [B,V,Y,X,3]: arrays [B,V,...]."""
  merged = placement.constrain(views.reshape(-1, *views.shape[2:]), ('views', None, None, None))
  return jax.tree.map(lambda out: out.reshape(*views.shape[:2], *out.shape[1:]), encoder(merged))


def class_and_cells(output: Any, name: str) -> tuple[jax.Array, jax.Array]:
  """An encoder's class tokens [B,V,E] and cells of its feature maps [B,V,G,G,E].

  Raises:
    SphinxError: it is a Q-Former, whose output is query tokens.
  """
  if not isinstance(output, tuple):
    raise _unfit(name, 'an encoder that returns queries', 'one that returns a feature map')
  return output


def queries(output: Any, name: str) -> jax.Array:
  """An encoder's query tokens [B,V,Q,E].

  Raises:
    SphinxError: it has none.
  """
  if isinstance(output, tuple):
    raise _unfit(name, 'an encoder that returns a feature map', 'one that returns queries')
  return output


def _unfit(name: str, got: str, expected: str) -> errors.SphinxError:
  return errors.make(f"objective that trains '{name}'", got, expected, 'change its setting trains')


def answers(batch: steps.Batch, length: int) -> tuple[jax.Array, jax.Array]:
  """The captions of a batch without what surrounds them in a dialog.

  Args:
    batch: see core/batch.py, one example a row.
    length: L, the longest caption; longer ones are cut.

  Returns:
    Tokens int32[B,L], 0 behind the end of a caption, and bool[B,L], whether there is a token.
  """
  labelled = batch['loss_weight'] > 0
  order = jnp.argsort(~labelled, axis=1, stable=True)[:, :length]
  is_token = jnp.take_along_axis(labelled, order, axis=1)
  tokens = jnp.take_along_axis(batch['targets'], order, axis=1)
  return jnp.where(is_token, tokens, 0), is_token
