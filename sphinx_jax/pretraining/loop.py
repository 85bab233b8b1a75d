"""Trains the encoders of a model, objective by objective, and writes them as one checkpoint.

Every objective has a directory with its metrics.jsonl and its checkpoints, and resumes from these
as a run does (train.py). The last checkpoint of all has the encoders alone: a run that begins with
it draws its other parameters at random.
"""

import contextlib
import os
from collections.abc import Mapping

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
from sphinx_jax.pretraining.objective import OBJECTIVES, Objective
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
  runs = {name: _Run(config, name) for name in OBJECTIVES if name in config.objectives}
  trained = {}
  for name, run in runs.items():
    trained |= run.train(workdir / name)
  updates = sum(section.steps for section in config.objectives.values())
  tokenizer = _open_tokenizer(config)
  part = families.feature_params(config.model)
  bundle = Bundle(
    config, tokenizer.model_bytes, config.dialog.to_dict(), tokenizer.added, part=part
  )
  with checkpoints.Store(workdir) as store:
    store.save(updates, {part: trained}, None, bundle.to_meta())
  log.info('%s: encoders %s', workdir, ', '.join(trained))


def _open_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
  template = dialog.Template(**config.dialog)
  return tokenizers.load(config.tokenizer).with_specials(template.special_tokens)


class _Run:
  """One objective: its program and its data.

  Args:
    config: as of `pretrain`.
    name: of the objective.

  Raises:
    SphinxError: a setting, or what does not fit the mesh.
  """

  def __init__(self, config: ConfigDict, name: str) -> None:
    self._config, self._name, self._section = config, name, config.objectives[name]
    self._key = jax.random.fold_in(jax.random.key(config.seed), list(OBJECTIVES).index(name))
    model = FrozenConfigDict(config.model.to_dict())
    self._objective: Objective = OBJECTIVES[name](model, self._section, config.batch.text)
    self._mesh = meshes.make_mesh(**config.mesh)
    self._sharding = placement.batch_sharding(self._mesh)
    self._replicated = placement.replicated(self._mesh)
    placement.microbatches(config.batch.size, config.batch.seq_len, 1, self._mesh)
    boxes = jax.eval_shape(self._objective.init, self._key)
    self._axes = jax.tree.map(
      lambda box: tuple(box.names), boxes, is_leaf=lambda box: isinstance(box, nn.Partitioned)
    )
    shapes = nn.unbox(boxes)
    self._params = placement.with_shardings(shapes, rules.shardings(self._axes, shapes, self._mesh))
    settings, updates = self._section.optimizer, self._section.steps
    self._rate = optimizers.schedule(settings.lr, settings.warmup, settings.decay_to, updates)
    trained_axes, _ = states.split(self._axes, self._objective.trainable)
    self._optimizer = optimizers.make_optimizer(
      name=settings.name,
      rate=self._rate,
      logical_axes=trained_axes,
      betas=settings.betas,
      weight_decay=settings.weight_decay,
      clip=settings.clip,
      moment_dtype=settings.moment_dtype,
    )
    trained, _ = states.split(self._params, self._objective.trainable)
    opt_shapes = jax.eval_shape(self._optimizer.init, trained)
    self._opt_state = placement.with_shardings(
      opt_shapes,
      optimizers.state_shardings(
        self._optimizer, trained, placement.shardings(trained), self._replicated
      ),
    )

  def train(self, workdir: epath.Path) -> dict[str, dict]:
    """Trains to the end, or finds that it is done. Returns encoder -> its parameters."""
    name, updates, every = self._name, self._section.steps, self._config.checkpoint.every
    with contextlib.ExitStack() as stack:
      hosts.on_process_0(lambda: workdir.mkdir(parents=True, exist_ok=True))
      store = stack.enter_context(checkpoints.Store(workdir, self._config.checkpoint.keep))
      state, position, sums = self._restore_or_init(store)
      first = int(state.step)
      if first == updates:
        return self._objective.trained(state.params)
      log.info('%s: %.2f M parameters trained', name, trees.count(state.trained) / 1e6)
      batches = stack.enter_context(contextlib.closing(self._open_data().batches(position)))
      update = self._compile(state)  # While the first batches are read.
      writer = stack.enter_context(
        contextlib.closing(writers.Writer(workdir, first, hosts.process_index() == 0))
      )
      bar = stack.enter_context(Progress(total=updates, start=first, what=name, unit='step'))
      stopping = stack.enter_context(Stopping(str(workdir)))
      window = writers.Window(self._objective.losses, sums)
      for step in range(first + 1, updates + 1):
        with window.waiting():
          batch, position = next(batches)
        self._check_rows(batch)
        state, metrics = update(state, self._put(batch))
        window.add(step, metrics)
        last = step == updates
        if last or step % self._config.log_every == 0:
          window.read()
          writer.write(step, window.close())
        stop = stopping.after(step, last)
        if last or step % every == 0 or stop:
          window.read()  # Raises if the loss is not finite: such a step is never saved.
          meta = {'data_position': position, 'window': window.state()}
          store.save(step, state.params, state.opt_state, meta)
        bar.update(note=writers.note(writer.last))
        if stop:
          log.info('stopped at step %d; run the same command again to resume', step)
          raise SystemExit(128 + stop)
      log.info('%s: %d updates, loss %.4f', name, updates, writer.last['loss'])
      return self._objective.trained(state.params)

  def _restore_or_init(self, store: checkpoints.Store) -> tuple[states.State, int, dict]:
    """Returns (state, data position, sums of the open window of metrics)."""
    restored = store.restore_newest(self._params, self._opt_state)
    if restored is not None:
      params, opt_state, meta = restored
      step, position, sums = meta['step'], meta['data_position'], meta['window']
    else:
      params = jax.jit(
        lambda key: nn.unbox(self._objective.init(key)),
        out_shardings=placement.shardings(self._params),
        compiler_options=placement.fast_compile_options(),
      )(self._key)
      trained, _ = states.split(params, self._objective.trainable)
      opt_state = jax.jit(self._optimizer.init, out_shardings=placement.shardings(self._opt_state))(
        trained
      )
      step, position, sums = 0, 0, {}
    trained, frozen = states.split(params, self._objective.trainable)
    step = jax.device_put(jnp.int32(step), self._replicated)
    return states.State(step, trained, frozen, opt_state), position, sums

  def _compile(self, state: states.State) -> jax.stages.Compiled:
    """Returns the update (state, batch) -> (state, metrics), which donates the state."""
    step = steps.make_train_step(
      self._objective.loss, self._optimizer, self._rate, seed=self._config.seed
    )

    def update(state: states.State, batch: steps.Batch) -> tuple[states.State, dict]:
      return self._objective.after(*step(state, batch))

    size, length = self._config.batch.size, self._config.batch.seq_len
    fields = batch_contract.spec(size, length, 1, self._config.model.image_size)
    fields = {name: fields[name] for name in _FIELDS}
    batch = placement.with_shardings(fields, dict.fromkeys(fields, self._sharding))
    shardings = placement.shardings(state), self._replicated
    with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
      jitted = jax.jit(update, donate_argnums=0, out_shardings=shardings)
      return jitted.lower(state, batch).compile()

  def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return placement.put({name: batch[name] for name in _FIELDS}, self._sharding)

  def _open_data(self) -> Pipeline:
    config, entry = self._config, self._section.data
    return Pipeline(
      {self._name: datasets.open_source(entry, config.data_dir)},
      weights={self._name: entry.weight},
      tokenizer=_open_tokenizer(config),
      template=dialog.Template(**config.dialog),
      config=PipelineConfig(
        batch_size=config.batch.size,
        seq_len=config.batch.seq_len,
        slots=1,
        window=config.batch.window,
        visual_tokens=1,  # Encoders are trained without a language model that would read more.
        image_size=config.model.image_size,
        seed=config.seed,
        max_skipped=config.max_skipped,
        alpha=config.image.alpha,
      ),
      local_rows=hosts.local_rows(self._sharding, config.batch.size),
    )

  def _check_rows(self, batch: Mapping[str, np.ndarray]) -> None:
    """Raises SphinxError unless every row has one example, with an image."""
    images = (batch['visual_index'] == 0).sum(axis=1)
    if (images != 1).any() or (batch['segments'].max(axis=1) != 1).any():
      raise errors.make(
        f'objectives.{self._name}.data',
        f'{int((images != 1).sum())} of {len(images)} rows without one image',
        'one image with a caption in every example',
        'take a source of captions',
      )
