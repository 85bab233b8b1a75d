"""One training run: `python -m sphinx_jax.train --config=configs/forkme.py --workdir=DIR [--config.a.b=c]`.

`train` is the story of a run, top to bottom: config, mesh, data, shapes, layouts, compilation, arrays, loop, last words.
The same command after an interruption goes on from the run's last checkpoint, with bit-identical losses.
"""

import base64
import contextlib
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.core import batch as contract
from sphinx_jax.core import cli, config as config_lib, errors, trees
from sphinx_jax.core.progress import log, progress
from sphinx_jax.data import dialog, pipeline, sources, tokenizer as tokenizers
from sphinx_jax.models import sphinx
from sphinx_jax.parallel import mesh as meshes, placement, rules
from sphinx_jax.training import optimizer as optimizers, state as states, step as steps, writer as writers
from sphinx_jax.training.stopping import Stopping

FLAGS = flags.FLAGS
RESIZABLE = ('mesh', 'checkpoint')  # Settings that do not change the numbers may change between starts of one run.


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
  """Trains, from wherever the run stands, to `config.steps`.

  Args:
    config: one training run, see configs/forkme.py.
    workdir: the run's directory; gets config.json, metrics.jsonl, tensorboard/ and checkpoints/.

  Returns:
    The last metrics, by the names of metrics.jsonl, `validation/NAME` included.

  Raises:
    SphinxError: a config, data, mesh or checkpoint that does not fit; a loss that is not finite.
    SystemExit: after SIGTERM or Ctrl-C, once the run is saved.
  """
  workdir = config_lib.claim(workdir, config, ignore=RESIZABLE)
  before = checkpoints.latest(workdir)
  if before == config.steps:
    log.info('%s: finished before', workdir)
    return checkpoints.load_meta(workdir)['metrics']

  # Mesh, data, shapes, layouts, compilation: nothing large is made before all of them fit together.
  plan = Plan(config)
  data = open_data(config)
  log.info('mixture of %s:\n%s', config.name, data.table)
  if before is None and config.init_from:
    check_parent(config, plan, data)
  abstract, train_step = compile_step(config, plan)

  with contextlib.ExitStack() as stack:
    store = stack.enter_context(checkpoints.Store(workdir, config.checkpoint.keep))
    state, position, sums = start(config, plan, abstract, store)
    first = int(state.step)
    writer = stack.enter_context(contextlib.closing(writers.Writer(workdir, first, jax.process_index() == 0)))
    batches = stack.enter_context(contextlib.closing(data.batches(position)))
    bar = stack.enter_context(progress(total=config.steps, start=first, what=config.name, unit='step'))
    stopping = stack.enter_context(Stopping())
    window = writers.Window(tuple(config.mixture), sums)

    for step in range(first + 1, config.steps + 1):
      with window.waiting():
        batch, position = next(batches)
      if step == first + 1:
        contract.check(batch, sphinx.visual_tokens(config.model))
      state, metrics = train_step(state, placement.put(batch, plan.rows))
      window.add(step, metrics)  # Reads the step before, now that this one is on its way.

      last = step == config.steps
      if last or step % config.log_every == 0:
        window.read()
        writer.write(step, window.close())
      if data.validation and (last or step % config.eval_every == 0):
        with window.pause():
          losses = plan.evaluate(state.params, data.validation)
        writer.write(step, {f'validation/{name}': value for name, value in losses.items()})
      if last or step % config.checkpoint.every == 0 or stopping.asked:
        window.read()  # A step that is not finite is never saved.
        store.save(step, state.params, state.opt_state, data.carried | {
            'data_position': position, 'window': window.state(), 'metrics': writer.last})
      bar.update(note=f"loss {writer.last['loss']:.3f}" if 'loss' in writer.last else '')
      if stopping.asked:
        log.info('stopped at step %d; run the same command again to go on', step)
        raise SystemExit(128 + stopping.asked)  # The store waits for the save on the way out.

  for (source, reason), number in data.skipped.items():
    log.info('skipped %d examples of %s: %s', number, source, reason)
  losses = {name: value for name, value in writer.last.items() if name.startswith(('loss', 'validation'))}
  log.info('%s: %d steps; %s', workdir, config.steps, ', '.join(f'{name} {value:.4f}' for name, value in losses.items()))
  return writer.last


class Data(NamedTuple):
  """What a run trains on and measures itself by.

  Attributes:
    batches: data position -> iterator (with `close`) of (numpy batch, next position).
    validation: name -> list of numpy batches.
    carried: what the checkpoint keeps for inference: `config`, `tokenizer` (base64), `dialog`.
    table: the mixture as text.
    skipped: (task, reason) -> number of examples left out so far.
  """

  batches: Callable[[int], Any]
  validation: dict[str, list[dict]]
  carried: dict[str, Any]
  table: str
  skipped: Mapping[tuple[str, str], int]


def open_data(config: ConfigDict) -> Data:
  """Opens the mixture and the validation sets of a run.

  Raises:
    SphinxError: a source, tokenizer or setting that does not fit.
  """
  tokenizer = open_tokenizer(config)
  if tokenizer.vocab_size > config.model.llm.vocab:
    raise errors.make(f"tokenizer '{config.tokenizer}'", f'{tokenizer.vocab_size} ids',
                      f'at most model.llm.vocab {config.model.llm.vocab}',
                      'raise the vocabulary or take another tokenizer')

  visual_tokens = sphinx.visual_tokens(config.model)

  def open_mixture(entries: ConfigDict, loss_weighting: str) -> pipeline.Pipeline:
    return pipeline.Pipeline(
        {name: sources.open_source(entry, config.data_dir) for name, entry in entries.items()},
        {name: entry.weight for name, entry in entries.items()}, tokenizer, dialog.Template(config.dialog.system),
        config.batch, visual_tokens, config.model.image_size, config.seed, loss_weighting, host=jax.process_index(),
        hosts=jax.process_count())

  mixture = open_mixture(config.mixture, config.loss_weighting)
  validation = {}
  for name, entry in config.validation.items():
    with contextlib.closing(open_mixture(ConfigDict({name: entry}), 'token').batches()) as batches:
      validation[name] = [batch for batch, _ in itertools.islice(batches, config.eval_batches)]
  return Data(mixture.batches, validation, {
      'config': config_lib.to_json(config), 'tokenizer': base64.b64encode(tokenizer.model_bytes).decode(),
      'dialog': config.dialog.to_dict()}, mixture.table(), mixture.skipped)


def open_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
  """The tokenizer of `config.tokenizer`; where that is empty, the one inside `init_from`.

  Raises:
    SphinxError: neither is given, or not what it should be.
  """
  if config.tokenizer:
    return tokenizers.load(config.tokenizer)
  if not config.init_from:
    raise errors.make('tokenizer', 'neither a tokenizer nor init_from', 'one of them', 'give the path of a tokenizer.model')
  return tokenizers.Tokenizer(base64.b64decode(checkpoints.load_meta(config.init_from)['tokenizer']))


class Plan:
  """What follows from a config before any array is made: mesh, shapes and layouts of parameters and batch, the model.

  Attributes:
    mesh: the devices.
    params: ShapeDtypeStruct of every parameter, at its resting dtype, with its sharding.
    axes: names of every parameter's dimensions.
    rows: the sharding of a batch.
    batch: ShapeDtypeStruct of a batch, with sharding.
    evaluate: (parameters, name -> numpy batches) -> name -> mean loss in nats.

  Raises:
    SphinxError: a mesh, model and batch that do not fit together.
  """

  def __init__(self, config: ConfigDict):
    self.mesh = meshes.make_mesh(**config.mesh)
    placement.check_rows(config.batch.rows, config.optimizer.accumulate, self.mesh)
    self._model = sphinx.build(config.model)
    self.axes = sphinx.logical_axes(config.model)
    resting = states.at_rest(sphinx.abstract_params(config.model), config.trained, config.model.dtype)
    self.params = with_layouts(resting, rules.shardings(self.axes, resting, self.mesh))
    self.rows = placement.batch_sharding(self.mesh)
    shapes = contract.spec(config.batch.rows, config.batch.length, config.batch.images, config.model.image_size)
    self.batch = with_layouts(shapes, dict.fromkeys(shapes, self.rows))
    self._eval_step = jax.jit(steps.make_eval_step(self.apply), out_shardings=placement.replicated(self.mesh))

  def apply(self, params: dict, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Logits float32[B,T,vocab]."""
    return self._model.apply({'params': params}, *(
        batch[name] for name in ('tokens', 'visual_index', 'positions', 'segments', 'images')))

  def evaluate(self, params: dict, validation: Mapping[str, list[dict]]) -> dict[str, float]:
    """Mean loss in nats of each validation set (name -> numpy batches)."""
    placed = {name: (placement.put(batch, self.rows) for batch in batches) for name, batches in validation.items()}
    return steps.evaluate_loss(self._eval_step, params, placed)


def with_layouts(shapes: Any, layouts: Any) -> Any:
  """A tree of ShapeDtypeStruct that carries shardings."""
  return jax.tree.map(
      lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), shapes, layouts)


def make_optimizer(config: ConfigDict, axes: Mapping) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer of the trained parameters and its learning rate by update."""
  settings = config.optimizer
  rate = optimizers.schedule(settings.lr, settings.warmup, settings.decay_to, config.steps)
  trained = states.split(axes, config.trained)[0]
  return optimizers.make_optimizer(settings.name, rate, trained, settings.betas, settings.weight_decay, settings.clip,
                                   settings.moment_dtype), rate


def compile_step(config: ConfigDict, plan: Plan) -> tuple[states.State, Callable]:
  """The shapes and layouts of the whole state, and the compiled update; says what it takes in the log."""
  began = time.monotonic()
  optimizer, rate = make_optimizer(config, plan.axes)
  everywhere = placement.replicated(plan.mesh)
  trained, frozen = states.split(plan.params, config.trained)
  layouts = jax.tree.map(lambda leaf: leaf.sharding, trained)
  opt_state = with_layouts(jax.eval_shape(optimizer.init, trained),
                           optimizers.state_shardings(optimizer, trained, layouts, everywhere))
  abstract = states.State(jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere), trained, frozen, opt_state)
  log.info('%s: %.2f M parameters trained, %.2f M frozen, on %s', config.name, trees.count(trained) / 1e6,
           trees.count(frozen) / 1e6, ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.shape.items()))
  update = steps.make_train_step(plan.apply, optimizer, rate, len(config.mixture), config.optimizer.accumulate)
  after = jax.tree.map(lambda leaf: leaf.sharding, abstract), everywhere
  compiled = jax.jit(update, donate_argnums=0, out_shardings=after).lower(abstract, plan.batch).compile()
  log.info('compiled in %.0f s, %s', time.monotonic() - began, describe_memory(compiled))
  return abstract, compiled


def describe_memory(compiled: Any) -> str:
  """Bytes a device needs for a compiled step, as far as the backend says."""
  memory = compiled.memory_analysis()
  if memory is None:
    return 'memory unknown'
  held, work = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
  return f'a device holds {held:.0f} MiB and works in {work:.0f} MiB'


def start(config: ConfigDict, plan: Plan, abstract: states.State,
          store: checkpoints.Store) -> tuple[states.State, int, dict]:
  """The state to go on from: the run's own last checkpoint, or the parameters of `init_from`, or scratch.

  Returns:
    (state, data position, sums of the open window of metrics).
  """
  step = store.latest()
  if step is not None:
    log.info('going on from step %d', step)
    params, opt_state, meta = store.restore(step, plan.params, abstract.opt_state)
    position, sums = meta['data_position'], meta['window']
  else:
    if config.init_from:
      log.info('starting from %s', config.init_from)
      params = checkpoints.load_params(config.init_from, plan.params)
    else:
      params = make_params(config, plan)
    optimizer, _ = make_optimizer(config, plan.axes)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=layouts)(states.split(params, config.trained)[0])
    step, position, sums = 0, 0, {}
  trained, frozen = states.split(params, config.trained)
  step = jax.device_put(jnp.int32(step), abstract.step.sharding)
  return states.State(step, trained, frozen, opt_state), position, sums


def check_parent(config: ConfigDict, plan: Plan, data: Data) -> None:
  """Refuses an `init_from` that does not fit: not a checkpoint, other leaves, another tokenizer."""
  checkpoints.check(config.init_from, plan.params)
  if checkpoints.load_meta(config.init_from).get('tokenizer') != data.carried['tokenizer']:
    raise errors.make(f"init_from '{config.init_from}'", 'another tokenizer', f"that of '{config.tokenizer}'",
                      'train with the tokenizer that the checkpoint carries')


def make_params(config: ConfigDict, plan: Plan) -> dict:
  """Fresh parameters, made where they will lie."""
  def make(rng: jax.Array) -> dict:
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), sphinx.init(config.model, rng), plan.params)
  layouts = jax.tree.map(lambda leaf: leaf.sharding, plan.params)
  # It runs once, and XLA:CPU would compile it longer than anything else in the run.
  quick = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  options = quick if jax.default_backend() == 'cpu' else None
  return jax.jit(make, out_shardings=layouts, compiler_options=options)(jax.random.key(config.seed))


def main() -> None:
  if not FLAGS.workdir:
    raise errors.make('--workdir', 'nothing', 'a directory for the run', 'give --workdir=DIR')
  train(FLAGS.config, FLAGS.workdir)


if __name__ == '__main__':
  cli.define_config()
  flags.DEFINE_string('workdir', None, "The run's directory: new, or that of an interrupted run of the same config.")
  cli.run(main)
