"""Trains the encoders of a model, objective by objective, and writes them as one checkpoint.

Every objective has a directory with its metrics.jsonl and its checkpoints, and resumes from these
as a run does (train.py). The last checkpoint has the encoders alone: a run that begins with it
draws its other parameters at random.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from sphinx_jax import datasets
from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import batch as batch_contract, errors, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.data import dialog, tokenizer as tokenizers
from sphinx_jax.data.pipeline import Pipeline, PipelineConfig
from sphinx_jax.models import families
from sphinx_jax.parallel import hosts, mesh as meshes, placement, rules
from sphinx_jax.planning import flops, peak
from sphinx_jax.pretraining.objective import OBJECTIVES
from sphinx_jax.training import (
  optimizer as optimizers,
  state as states,
  step as steps,
  writer as writers,
)
from sphinx_jax.training.stopping import Stopping

_FIELDS = ('images', 'targets', 'loss_weight', 'segments')  # Of a batch that an update reads.


def pretrain(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Trains the encoders that the objectives name, and writes them into `workdir`.

  Args:
    config: the section of a recipe's step of kind `pretrain`.
    workdir: directory of the step. Each objective has a folder in it.

  Raises:
    SphinxError: a setting, the data, the mesh or a checkpoint is wrong; a loss is not finite; the
      disk is full.
    SystemExit: after SIGTERM or Ctrl-C, once the run is saved.
  """
  workdir = checkpoints.absolute_path(workdir)
  tokenizer = open_tokenizer(config)
  # All are checked before the first is trained.
  programs = {name: Program(config, name) for name in OBJECTIVES if name in config.objectives}
  trained = {}
  for name, program in programs.items():
    data = open_data(config, name, tokenizer, program.batch_sharding)
    trained |= train(config, name, program, data, workdir / name)
  updates = sum(section.steps for section in config.objectives.values())
  part = families.feature_params(config.model)
  bundle = Bundle(
    config, tokenizer.model_bytes, config.dialog.to_dict(), tokenizer.added, part=part
  )
  with checkpoints.Store(workdir) as store:
    if store.latest() != updates:  # It may have been written just before a kill.
      store.save(updates, {part: trained}, None, bundle.to_meta())
  log.info('%s: pretrained %s', workdir, ', '.join(trained))


class Program:
  """What follows from the settings of one objective before any array is made.

  Args:
    config: as of `pretrain`.
    name: of the objective.

  Attributes:
    objective: the objective.
    mesh: the device mesh.
    batch_sharding: the sharding of every field of a batch.
    state: training.state.State of ShapeDtypeStruct with shardings.
    flops: FLOP of an update over all devices; 0 before `compile`.

  Raises:
    SphinxError: the model, the mesh and the batch do not fit together.
  """

  def __init__(self, config: ConfigDict, name: str) -> None:
    self._config, section = config, config.objectives[name]
    self._key = jax.random.fold_in(jax.random.key(config.seed), list(OBJECTIVES).index(name))
    self.flops = 0.0
    self.objective = OBJECTIVES[name](
      FrozenConfigDict(config.model.to_dict()), section, config.batch.text
    )
    self.mesh = meshes.make_mesh(**config.mesh)
    self.batch_sharding = placement.batch_sharding(self.mesh)
    self._replicated = placement.replicated(self.mesh)
    placement.microbatches(config.batch.size, config.batch.seq_len, 1, self.mesh)

    boxes = jax.eval_shape(self.objective.init, self._key)
    shapes, axes = nn.unbox(boxes), families.names_of(boxes)
    self._params = placement.with_shardings(shapes, rules.shardings(axes, shapes, self.mesh))
    trained, frozen = states.split(self._params, self.objective.trainable)
    settings = section.optimizer
    self._rate = optimizers.schedule(settings.lr, settings.warmup, settings.decay_to, section.steps)
    self._optimizer = optimizers.make_optimizer(
      name=settings.name,
      rate=self._rate,
      logical_axes=states.split(axes, self.objective.trainable)[0],
      betas=settings.betas,
      weight_decay=settings.weight_decay,
      clip=settings.clip,
      moment_dtype=settings.moment_dtype,
    )
    opt_shardings = optimizers.state_shardings(
      self._optimizer, trained, placement.shardings(trained), self._replicated
    )
    self.state = states.State(
      jax.ShapeDtypeStruct((), jnp.int32, sharding=self._replicated),
      trained,
      frozen,
      placement.with_shardings(jax.eval_shape(self._optimizer.init, trained), opt_shardings),
    )

  def restore_or_init(self, store: checkpoints.Store) -> tuple[states.State, int, dict]:
    """Returns (state, data position, sums of the open window of metrics)."""
    restored = store.restore_newest(self.state.params, self.state.opt_state)
    if restored is not None:
      params, opt_state, meta = restored
      step, position, sums = meta['step'], meta['data_position'], meta['window']
    else:
      params, opt_state = self.init()
      step, position, sums = 0, 0, {}
    trained, frozen = states.split(params, self.objective.trainable)
    step = jax.device_put(jnp.int32(step), self._replicated)
    return states.State(step, trained, frozen, opt_state), position, sums

  def init(self) -> tuple[dict, Any]:
    """Fresh parameters, and the optimizer's first state."""

    def make(key: jax.Array) -> tuple[dict, Any]:
      params = nn.unbox(self.objective.init(key))
      trained, _ = states.split(params, self.objective.trainable)
      return params, self._optimizer.init(trained)

    shardings = placement.shardings((self._params, self.state.opt_state))
    options = placement.fast_compile_options()
    return jax.jit(make, out_shardings=shardings, compiler_options=options)(self._key)

  def compile(self) -> jax.stages.Compiled:
    """Returns the update (state, batch) -> (state, metrics), which donates the state."""
    step = steps.make_train_step(
      self.objective.loss, self._optimizer, self._rate, seed=self._config.seed
    )

    def update(state: states.State, batch: steps.Batch) -> tuple[states.State, dict]:
      return self.objective.after(*step(state, batch))

    size, length = self._config.batch.size, self._config.batch.seq_len
    fields = batch_contract.spec(size, length, 1, self._config.model.image_size)
    fields = {name: fields[name] for name in _FIELDS}
    batch = placement.with_shardings(fields, dict.fromkeys(fields, self.batch_sharding))
    shardings = placement.shardings(self.state), self._replicated
    with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
      jitted = jax.jit(update, donate_argnums=0, out_shardings=shardings)
      traced = jitted.trace(self.state, batch)
    self.flops = sum(flops.count(traced, (), 1).parts.values())
    return traced.lower().compile()


def train(
  config: ConfigDict, name: str, program: Program, data: Pipeline, workdir: epath.Path
) -> dict[str, dict]:
  """Trains one objective to its end, from scratch or from its last checkpoint.

  Args:
    config: as of `pretrain`.
    name: of the objective.
    program: its program.
    data: its examples.
    workdir: its directory.

  Returns:
    Name of an encoder -> its parameters.

  Raises:
    SphinxError: see `pretrain`.
    SystemExit: see `pretrain`.
  """
  updates = config.objectives[name].steps
  with contextlib.ExitStack() as stack:
    hosts.on_process_0(lambda: workdir.mkdir(parents=True, exist_ok=True))
    store = stack.enter_context(checkpoints.Store(workdir, config.checkpoint.keep))
    state, position, sums = program.restore_or_init(store)
    first = int(state.step)
    if first == updates:
      return program.objective.trained(state.params)
    log.info('%s: %.2f M parameters trained', name, trees.count(state.trained) / 1e6)
    batches = stack.enter_context(contextlib.closing(data.batches(position)))
    update = program.compile()  # While the first batches are read.
    writer = stack.enter_context(
      contextlib.closing(writers.Writer(workdir, first, hosts.process_index() == 0))
    )
    bar = stack.enter_context(Progress(total=updates, start=first, what=name, unit='step'))
    stopping = stack.enter_context(Stopping(str(workdir)))
    peak_rate = peak.flops_per_second(list(program.mesh.devices.flat), config.model.dtype)
    window = writers.Window(program.objective.losses, sums, program.flops, peak=peak_rate)

    for step in range(first + 1, updates + 1):
      with window.waiting():
        batch, position = next(batches)
      _check_rows(name, batch)
      fields = {field: batch[field] for field in _FIELDS}
      state, metrics = update(state, placement.put(fields, program.batch_sharding))
      window.add(step, metrics)  # Reads the metrics of the step before while this one runs.

      last = step == updates
      if last or step % config.log_every == 0:
        window.read()
        writer.write(step, window.close())
      stop = stopping.after(step, last)
      if last or step % config.checkpoint.every == 0 or stop:
        window.read()  # Raises if the loss is not finite: such a step is never saved.
        meta = {'data_position': position, 'window': window.state()}
        store.save(step, state.params, state.opt_state, meta)
      bar.update(note=writers.note(writer.last))
      if stop:
        log.info('stopped at step %d; run the same command again to resume', step)
        raise SystemExit(128 + stop)  # The store finishes the save while it closes.
  log.info('%s: %d updates; loss %.4f', name, updates, writer.last['loss'])
  return program.objective.trained(state.params)


def open_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
  """Opens the tokenizer of the section.

  Raises:
    SphinxError: there is none, or it has more ids than the model.
  """
  specials = dialog.Template(**config.dialog).special_tokens
  tokenizer = tokenizers.load(config.tokenizer).with_specials(specials)
  tokenizers.check_fits(tokenizer, config.tokenizer, config.model.llm.vocab)
  return tokenizer


def open_data(
  config: ConfigDict,
  name: str,
  tokenizer: tokenizers.Tokenizer,
  sharding: jax.sharding.NamedSharding,
) -> Pipeline:
  """Opens the examples of one objective.

  Raises:
    SphinxError: the source or a setting is wrong.
  """
  entry = config.objectives[name].data
  return Pipeline(
    {name: datasets.open_source(entry, config.data_dir)},
    weights={name: entry.weight},
    tokenizer=tokenizer,
    template=dialog.Template(**config.dialog),
    config=PipelineConfig(
      batch_size=config.batch.size,
      seq_len=config.batch.seq_len,
      slots=1,
      window=config.batch.window,
      visual_tokens=1,  # No language model reads more of them here.
      image_size=config.model.image_size,
      seed=config.seed,
      max_skipped=config.max_skipped,
      alpha=config.image.alpha,
    ),
    local_rows=hosts.local_rows(sharding, config.batch.size),
  )


def _check_rows(name: str, batch: Mapping[str, np.ndarray]) -> None:
  """Raises SphinxError unless every row has one example, with one image."""
  images = (batch['visual_index'] == 0).sum(axis=1)
  if (images != 1).any() or (batch['segments'].max(axis=1) != 1).any():
    raise errors.make(
      f'objectives.{name}.data',
      f'{int((images != 1).sum())} of {len(images)} rows without exactly one image',
      'examples of one image and its caption',
      'take a source of captions',
    )
