"""What a config compiles to: mesh, shapes and layouts of everything, and the update. `train` runs it, `plan` looks at it.

Nothing here reads a weight, and only `init` makes large arrays.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ContextManager

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sphinx_jax.core import batch as contract, trees
from sphinx_jax.core.progress import log
from sphinx_jax.models import sphinx
from sphinx_jax.parallel import mesh as meshes, placement, rules
from sphinx_jax.training import optimizer as optimizers, state as states, step as steps


class Program:
  """Everything that follows from a config before any array is made.

  Args:
    config: one training run.
    devices: to compile for; None: those of this machine. They need not exist (a described topology).

  Attributes:
    mesh: the devices.
    axes: names of every parameter's dimensions.
    params: ShapeDtypeStruct of every parameter, at its resting dtype, with its sharding.
    rows: the sharding of a batch.
    batch: ShapeDtypeStruct of a batch, with sharding.
    optimizer, rate: of the trained parameters, and its learning rate by update.
    state: training.state.State of ShapeDtypeStruct, with shardings.

  Raises:
    SphinxError: a mesh, model and batch that do not fit together.
  """

  def __init__(self, config: ConfigDict, devices: Sequence[Any] | None = None):
    self._config = config
    self.mesh = meshes.make_mesh(**config.mesh, devices=devices)
    placement.check_rows(config.batch.size, config.optimizer.accumulate, self.mesh)
    self._apply = functools.partial(
      sphinx.apply, sphinx.build(config.model, self.mesh.devices.flat[0].platform)
    )
    self.axes = sphinx.logical_axes(config.model)
    resting = states.at_rest(
      sphinx.abstract_params(config.model), config.trainable, config.model.dtype
    )
    self.params = _with_layouts(resting, rules.shardings(self.axes, resting, self.mesh))
    self.rows, self._everywhere = (
      placement.batch_sharding(self.mesh),
      placement.replicated(self.mesh),
    )
    shapes = contract.spec(
      config.batch.size, config.batch.seq_len, config.batch.images, config.model.image_size
    )
    self.batch = _with_layouts(shapes, dict.fromkeys(shapes, self.rows))
    settings = config.optimizer
    self.rate = optimizers.schedule(settings.lr, settings.warmup, settings.decay_to, config.steps)
    self.optimizer = optimizers.make_optimizer(
      settings.name,
      self.rate,
      states.split(self.axes, config.trainable)[0],
      settings.betas,
      settings.weight_decay,
      settings.clip,
      settings.moment_dtype,
    )
    self.state = self._state()
    self._chunk = config.get('loss_chunk', 0)
    self._eval_step = jax.jit(
      steps.make_eval_step(self._apply, self._chunk), out_shardings=self._everywhere
    )

  def _state(self) -> states.State:
    trained, frozen = states.split(self.params, self._config.trainable)
    opt_state = _with_layouts(
      jax.eval_shape(self.optimizer.init, trained),
      optimizers.state_shardings(self.optimizer, trained, _layouts(trained), self._everywhere),
    )
    return states.State(
      jax.ShapeDtypeStruct((), jnp.int32, sharding=self._everywhere), trained, frozen, opt_state
    )

  def evaluate(self, params: dict, validation: Mapping[str, list[dict]]) -> dict[str, float]:
    """Mean loss in nats of each validation set (name -> numpy batches)."""
    placed = {
      name: (placement.put(batch, self.rows) for batch in batches)
      for name, batches in validation.items()
    }
    with self._on_mesh():
      return steps.evaluate_loss(self._eval_step, params, placed)

  def trace(self) -> jax.stages.Traced:
    """The update `(state, batch) -> (state, metrics)`; the state is donated."""
    update = steps.make_train_step(
      self._apply,
      self.optimizer,
      self.rate,
      len(self._config.mixture),
      self._config.optimizer.accumulate,
      self._chunk,
    )
    after = _layouts(self.state), self._everywhere
    with self._on_mesh():
      return jax.jit(update, donate_argnums=0, out_shardings=after).trace(self.state, self.batch)

  def lower(self) -> jax.stages.Lowered:
    """The update as text for the compiler."""
    return self.trace().lower()

  def _on_mesh(self) -> ContextManager:
    """Tells the model which mesh its intermediate values lie on; the devices themselves need not exist."""
    return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

  def compile(self) -> Callable:
    """The compiled update; says what it takes in the log."""
    began = time.monotonic()
    log.info(
      '%s: %.2f M parameters trained, %.2f M frozen, on %s',
      self._config.name,
      trees.count(self.state.trained) / 1e6,
      trees.count(self.state.frozen) / 1e6,
      ' x '.join(f'{axis} {size}' for axis, size in self.mesh.shape.items()),
    )
    compiled = self.lower().compile()
    log.info('compiled in %.0f s, %s', time.monotonic() - began, _describe_memory(compiled))
    return compiled

  def init(self) -> dict:
    """Fresh parameters, made where they will lie."""

    def make(rng: jax.Array) -> dict:
      return jax.tree.map(
        lambda leaf, like: leaf.astype(like.dtype),
        sphinx.init(self._config.model, rng),
        self.params,
      )

    options = placement.quick_options()
    return jax.jit(make, out_shardings=_layouts(self.params), compiler_options=options)(
      jax.random.key(self._config.seed)
    )

  def init_optimizer(self, trained: dict) -> Any:
    """The optimizer's first state, made where it will lie."""
    return jax.jit(self.optimizer.init, out_shardings=_layouts(self.state.opt_state))(trained)


def _with_layouts(shapes: Any, layouts: Any) -> Any:
  """A tree of ShapeDtypeStruct that carries shardings."""
  return jax.tree.map(
    lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
    shapes,
    layouts,
  )


def _layouts(tree: Any) -> Any:
  """The shardings of a tree of ShapeDtypeStruct."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _describe_memory(compiled: Any) -> str:
  """Bytes a device needs for a compiled step, as far as the backend says."""
  memory = compiled.memory_analysis()
  if memory is None:
    return 'memory unknown'
  held, work = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
  return f'a device holds {held:.0f} MiB and works in {work:.0f} MiB'
