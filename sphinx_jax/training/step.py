"""One update, and one evaluation of a batch: pure functions to be compiled by the door."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from sphinx_jax.parallel import placement
from sphinx_jax.training import loss as losses
from sphinx_jax.training.state import State, merge

Batch = Mapping[str, jax.Array]
Head = Callable[[jax.Array], jax.Array]  # States [B,t,D] -> logits float[B,t,vocab]
Apply = Callable[
  [dict, Batch], tuple[jax.Array, Head]
]  # (parameters, batch) -> (states [B,T,D], head)


def make_train_step(
  apply: Apply,
  optimizer: optax.GradientTransformation,
  rate: optax.Schedule,
  tasks: int,
  accumulate: int = 1,
  chunk: int = 0,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
  """The update `(state, batch) -> (state, metrics)`.

  Only the trained tree is differentiated. With `accumulate` microbatches the rows are cut and the gradients added, each
  microbatch's loss divided by the weight of the WHOLE batch, so the update is that of one large batch.

  Args:
    apply: the model up to its last states, and the head that turns them into logits.
    optimizer: for the trained tree.
    rate: learning rate by update, for the metrics.
    tasks: number of tasks in the mixture.
    accumulate: number of microbatches; must divide the rows.
    chunk: positions whose logits exist at one time, see `loss.chunked_sums`.

  Returns:
    A pure function. Its metrics are the sums of `loss.sums` (over the batch), `grad_norm` (before clipping),
    `learning_rate`, `examples` packed, `useful` positions that are not padding and `positions` in all.
  """

  def gradients(state: State, batch: Batch) -> tuple[dict, dict]:
    total = batch['loss_weight'].astype(jnp.float32).sum()

    def objective(trained: dict, part: Batch) -> tuple[jax.Array, dict]:
      sums = losses.chunked_sums(*apply(merge(trained, state.frozen), part), part, tasks, chunk)
      return losses.mean(sums['loss'], total), sums

    def one(part: Batch) -> tuple[dict, dict]:
      return jax.grad(objective, has_aux=True)(state.trained, part)

    if accumulate == 1:
      return one(batch)
    parts = _cut(batch, accumulate)
    shapes = jax.eval_shape(one, jax.tree.map(lambda field: field[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(
      lambda carry, part: (jax.tree.map(jnp.add, carry, one(part)), None), zero, parts
    )[0]

  def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    gradient, sums = gradients(state, batch)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trained)
    metrics = sums | {
      'grad_norm': optax.global_norm(gradient),
      'learning_rate': rate(state.step),
      'examples': batch['segments'].max(axis=1).sum(),
      'useful': (batch['segments'] > 0).sum(),
      'positions': jnp.int32(batch['segments'].size),
    }
    return State(
      state.step + 1, optax.apply_updates(state.trained, updates), state.frozen, opt_state
    ), metrics

  return step


def _cut(batch: Batch, parts: int) -> dict[str, jax.Array]:
  """[B,...] -> [parts, B/parts, ...]; row i goes to part i % parts, so every device keeps its own rows."""
  return {
    name: field.reshape(-1, parts, *field.shape[1:]).swapaxes(0, 1) for name, field in batch.items()
  }


def make_eval_step(
  apply: Apply, chunk: int = 0
) -> Callable[[dict, Batch], tuple[jax.Array, jax.Array]]:
  """The function `(parameters, batch) -> (sum of weighted losses, sum of weights)`."""

  def step(params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    sums = losses.chunked_sums(*apply(params, batch), batch, 1, chunk)
    return sums['loss'], sums['weight']

  return step


def evaluate_loss(
  eval_step: Callable[[dict, Batch], tuple[jax.Array, jax.Array]],
  params: dict,
  validation: Mapping[str, Iterable[Batch]],
) -> dict[str, float]:
  """Mean loss in nats of each validation set (name -> its batches): sum(weight * loss) / sum(weight) over all of them."""
  result = {}
  for name, batches in validation.items():
    parts = [
      placement.settled(eval_step(params, batch)) for batch in batches
    ]  # Before the first is read.
    total, weight = (sum(float(part[i]) for part in parts) for i in (0, 1))
    result[name] = total / weight if weight else 0.0
  return result
