"""One update, and one evaluation of a batch: pure functions, to be compiled by the caller."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sphinx_jax.models.families import Forward
from sphinx_jax.parallel import placement
from sphinx_jax.training import loss as losses, loss_scale
from sphinx_jax.training.state import State, merge

Batch = Mapping[str, jax.Array]
# (parameters, batch, random key or None) -> what the model makes of it.
Apply = Callable[[dict, Batch, jax.Array | None], Forward]
# (state, batch) -> (state, metrics).
TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
# (parameters, batch) -> sums of an objective.
EvalStep = Callable[[dict, Batch], dict[str, jax.Array]]


class Objective(NamedTuple):
  """What a run minimizes: the mean of a loss.

  Attributes:
    weight: batch -> what the sum of its losses is divided by.
    sums: (parameters, batch, random key or None) -> sums over the batch, to be added over
      microbatches. `loss` is differentiated. `weight`, `task_loss` and `task_weight` are as of
      `loss.sums`, and what begins with `loss.MEAN` is divided by `weight`, too. So is
      `loss.PENALTY`, if there is one: its mean over microbatches is added to the loss.
  """

  weight: Callable[[Batch], jax.Array]
  sums: Callable[[dict, Batch, jax.Array | None], dict[str, jax.Array]]


def likelihood(apply: Apply, tasks: int, chunk: int = 0) -> Objective:
  """The objective of most runs: the weighted cross entropy of the next token.

  Args:
    apply: the model up to its hidden states, and the matrix that turns them into logits.
    tasks: number of tasks in the mixture.
    chunk: number of positions whose logits exist at one time, see `loss.sums`.
  """

  def sums(params: dict, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
    forward = apply(params, batch, key)
    totals = losses.sums(forward.hidden_states, forward.matrices, batch, tasks, chunk)
    return totals | losses.of_router(forward.router, totals['weight'])

  return Objective(lambda batch: batch['loss_weight'].astype(jnp.float32).sum(), sums)


def make_train_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  rate: optax.Schedule,
  accumulate: int = 1,
  seed: int | None = None,
  scaled: bool = False,
) -> TrainStep:
  """Builds the update `(state, batch) -> (state, metrics)`.

  Only the trained tree is differentiated. The gradients of microbatches are added. The loss of each
  is divided by the weight of the WHOLE batch, so that the update equals that of one large batch.

  Args:
    objective: what is minimized.
    optimizer: transforms the gradient of the trained tree.
    rate: learning rate by update, for the metrics.
    accumulate: number of microbatches; must divide the batch size.
    seed: of the noise of training, which follows from it and the number of the update; None: none.
    scaled: whether the optimizer is one of `loss_scale.dynamic`.

  Returns:
    A pure function. Its metrics are the objective's sums over the batch, `grad_norm` before
    clipping, `learning_rate`, `examples` (packed examples), `useful` (positions that are not
    padding), `labelled` (positions with loss weight) and `positions` (all positions); if `scaled`,
    those of `loss_scale.metrics`, too.
  """

  def gradients(
    state: State, batch: Batch, total_weight: jax.Array, factor: jax.Array | float = 1.0
  ) -> tuple[dict, dict]:
    def mean_loss(
      trained: dict, microbatch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, dict]:
      sums = objective.sums(merge(trained, state.frozen), microbatch, key)
      penalty = sums.get(losses.PENALTY, 0.0) * factor / accumulate
      return losses.mean(sums['loss'], total_weight) + penalty, sums

    def gradient(part: tuple[Batch, jax.Array | None]) -> tuple[dict, dict]:
      return jax.grad(mean_loss, has_aux=True)(state.trained, *part)

    key = None if seed is None else jax.random.fold_in(jax.random.key(seed), state.step)
    if accumulate == 1:
      return gradient((batch, key))
    keys = None if key is None else jax.random.split(key, accumulate)
    return losses.sum_over(gradient, (microbatches(batch, accumulate), keys))

  def scaled_gradients(state: State, batch: Batch, total_weight: jax.Array) -> tuple[dict, dict]:
    # The loss is scaled by its weights: the LM head rounds its gradient where it computes the loss.
    factor = losses.mean(state.opt_state.scale, total_weight)
    weight = batch['loss_weight'].astype(jnp.float32) * factor
    scaled_batch = {**batch, 'loss_weight': weight}
    gradient, sums = gradients(state, scaled_batch, jnp.float32(1), state.opt_state.scale)
    return gradient, jax.tree.map(lambda total: losses.mean(total, factor), sums)

  def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    total_weight = objective.weight(batch)
    gradient, sums = (scaled_gradients if scaled else gradients)(state, batch, total_weight)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    metrics = sums | {
      'grad_norm': optax.global_norm(gradient),
      'learning_rate': rate(state.step),
      'examples': batch['segments'].max(axis=1).sum(),
      'useful': (batch['segments'] > 0).sum(),
      'labelled': (batch['loss_weight'] > 0).sum(),
      'positions': jnp.int32(batch['segments'].size),
    }
    if scaled:
      # The optimizer does not count skipped updates.
      metrics['learning_rate'] = rate(state.step - state.opt_state.inner.total_notfinite)
      metrics |= loss_scale.metrics(state.opt_state, opt_state, metrics['grad_norm'])
    return State(state.step + 1, trained, state.frozen, opt_state), metrics

  return step


def microbatches(batch: Batch, count: int) -> dict[str, jax.Array]:
  """[B,...] -> [count,B/count,...]. Row i goes to i % count, so every device keeps its own rows."""
  return {
    name: field.reshape(len(field) // count, count, *field.shape[1:]).swapaxes(0, 1)
    for name, field in batch.items()
  }


def make_eval_step(objective: Objective) -> EvalStep:
  """Builds the function `(parameters, batch) -> sums`, without noise.

  The sums of tasks and of routers are left out.
  """
  left_out = 'task_', losses.PENALTY, losses.ROUTER

  def step(params: dict, batch: Batch) -> dict[str, jax.Array]:
    sums = objective.sums(params, batch, None)
    return {name: total for name, total in sums.items() if not name.startswith(left_out)}

  return step


def evaluate_loss(
  eval_step: EvalStep, params: dict, validation: Mapping[str, Iterable[Batch]]
) -> dict[str, float]:
  """Mean loss of each validation set, sum(loss) / sum(weight) over its batches.

  Args:
    eval_step: from `make_eval_step`.
    params: tree of all parameters.
    validation: name of a set -> its batches.

  Returns:
    Name -> mean loss; 0 for a set without weight. Other means of the objective are 'NAME/MEAN'.
  """
  result = {}
  for name, batches in validation.items():
    # All batches are dispatched before the first result is read.
    results = [placement.block_on_cpu(eval_step(params, batch)) for batch in batches]
    totals = {key: sum(float(sums[key]) for sums in results) for key in results[0]}
    weight = totals.pop('weight')
    for key, total in totals.items():
      full_name = name if key == 'loss' else f'{name}/{key.removeprefix(losses.MEAN)}'
      result[full_name] = total / weight if weight else 0.0
  return result
