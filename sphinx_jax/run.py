"""One training run, from its config: which run, its compiled update, its data and its first state.

The entry points train, recipe, peek, plan and mix_stats, and mix_measure.py share this file.
`Program` makes large arrays only in `init`, and nothing else here reads a weight before
`restore_or_init`.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import datasets, settings as settings_lib
from sphinx_jax.checkpoint import (
  adapter_runs,
  features as features_lib,
  grown,
  merged,
  placing,
  store as checkpoints,
  stream,
  widened,
)
from sphinx_jax.checkpoint.bundle import Bundle, check_same_model, differences, load_bundle
from sphinx_jax.core import batch as batch_contract, config as config_lib, errors, tensorflow, trees
from sphinx_jax.core.progress import log
from sphinx_jax.data import (
  added_tokens,
  dialog,
  mixture as mixtures,
  slots,
  tokenizer as tokenizers,
)
from sphinx_jax.data.pipeline import Pipeline, PipelineConfig
from sphinx_jax.data.record import MARK
from sphinx_jax.mix import learned
from sphinx_jax.models import adapters, families, layers, stored, vocabulary
from sphinx_jax.parallel import hosts, mesh as meshes, placement, rules
from sphinx_jax.planning import flops, plan
from sphinx_jax.training import (
  layout as layouts,
  loss_scale,
  optimizer as optimizers,
  preference as preferences,
  state as states,
  step as steps,
  writer,
)

# Settings that may change between starts of one run: a smaller slice needs more microbatches.
# They change the losses by rounding errors only.
RESIZABLE = (
  'mesh',
  'profile',
  'wandb',
  'cache_features',
  'checkpoint',
  'optimizer.accumulate',
  'loss_chunk',
  'model.remat',
  'model.attention',
  'model.scan_unroll',
)


# ---------------------------------------------------------------------------------------------
# Which run, and where.


def training_steps(config: ConfigDict) -> list[str]:
  """Names of a recipe's training runs, in order."""
  return [name for name in config.steps if config[name].kind == 'train']


def training_run(
  config: ConfigDict, step: str | None, workdir: str | os.PathLike | None = None
) -> ConfigDict:
  """Returns the config of one training run.

  Args:
    config: a training run, which is returned as it is, or a recipe.
    step: name of the recipe's step.
    workdir: the recipe's directory. Paths that another step writes ('data/tokenizer.model', 'mix')
      are resolved in it; None leaves them relative.

  Raises:
    SphinxError: the recipe has no such training run; lists those it has. Or a setting is wrong.
  """
  if not settings_lib.is_recipe(config):
    settings_lib.check_run(config)
    return completed(config)
  settings_lib.check_steps(config)
  choices = training_steps(config)
  if step not in choices:
    raise errors.unknown('training run of the recipe', step or '', choices)
  settings_lib.check_run(config[step], step)
  return completed(section(config, step, workdir))


def section(config: ConfigDict, step: str, workdir: str | os.PathLike | None = None) -> ConfigDict:
  """The section of a recipe's step, with paths that other steps write; see `training_run`."""
  settings = config[step].to_dict()
  del settings['kind']
  for name in ('data_dir', 'tokenizer', 'init_from'):
    path = settings.get(name)
    if workdir is not None and path and path.split('/')[0] in config.steps:
      settings[name] = str(epath.Path(workdir) / path)
  return ConfigDict(settings).lock()


def completed(config: ConfigDict) -> ConfigDict:
  """The config of a run with what follows from its other settings.

  With `tokenizer_add`, the vocabulary has the size of the tokenizer with the new tokens, which are
  read if they are in a file. Beside adapters, the rows of the new tokens are trained.

  Raises:
    SphinxError: `init_from` has or is an adapter, the tokenizer or a file of tokens cannot be read,
      or the tokenizer has one of the tokens.
  """
  if config.init_from:
    merged.check_whole(config.init_from, 'init_from', part=True)
  if not config.get('tokenizer_add'):
    return config
  complete = config.copy_and_resolve_references()
  with complete.unlocked():
    complete.tokenizer_add = added_tokens.read(config.tokenizer_add)
    complete.model.llm.vocab = open_tokenizer(complete).vocab_size
    if config.get('lora') and vocabulary.TRAINED not in config.trainable:
      complete.trainable = (vocabulary.TRAINED, *config.trainable)
  return complete.lock()


def with_reference_losses(config: ConfigDict) -> ConfigDict:
  """The config of a run with the last held-out losses of the run `sampling.learned.reference`.

  Raises:
    SphinxError: that run has no loss of a task of the mixture.
  """
  if config.sampling.by != 'learned' or not config.sampling.learned.reference:
    return config
  reference = config.sampling.learned.reference
  last: dict[str, float] = {}
  for line in writer.read(reference):
    last |= line
  tasks = [name for name, entry in config.mixture.items() if entry.weight]
  missing = [name for name in tasks if f'validation/{name}' not in last]
  if missing:
    raise errors.make(
      f"sampling.learned.reference '{reference}'",
      f'a {writer.FILE} without validation/{missing[0]}' if last else f'no {writer.FILE}',
      f'held-out losses of {", ".join(tasks)}',
      'name the workdir of a run with these validation sets, for example one with fixed weights',
    )
  complete = config.copy_and_resolve_references()
  with complete.unlocked():
    complete.sampling.learned.reference_losses = {
      name: last[f'validation/{name}'] for name in tasks
    }
  return complete.lock()


def config_for(
  who: str, directory: checkpoints.Path, bundle: Bundle, config: ConfigDict | None = None
) -> ConfigDict:
  """Returns the config of a run that computes with the weights of a checkpoint.

  Args:
    who: the command, for messages.
    directory: of the checkpoint.
    bundle: that of the checkpoint.
    config: of a training run with the same model. None means the config inside the checkpoint.

  Raises:
    SphinxError: the model is another one, or there is no config of a training run.
  """
  if config is not None:
    other = dataclasses.replace(bundle, config=config)
    check_same_model(who, [directory, '--config'], [bundle, other])
    bundle = other
  config = bundle.config.copy_and_resolve_references()
  if 'mixture' not in config:
    raise errors.make(
      who,
      f"'{directory}' without the config of a training run",
      'a config with its data',
      'give --config',
    )
  settings_lib.check_run(config)
  with config.unlocked():  # The checkpoint has the tokenizer. Its file may be gone.
    config.tokenizer, config.init_from, config.tokenizer_add = '', str(directory), ()
  return config


def claim(
  config: ConfigDict, workdir: str | os.PathLike, ignore: tuple[str, ...] = ()
) -> epath.Path:
  """Claims a workdir for a config, on process 0, and checks that all processes see it.

  Args:
    config: the resolved config.
    workdir: directory or gs:// URL; made if absent.
    ignore: settings that may differ from those of an earlier start, see `core.config.claim`.

  Returns:
    The workdir as an absolute path.

  Raises:
    SphinxError: the directory belongs to another config, or this process does not see it.
  """
  workdir = checkpoints.absolute_path(workdir)
  hosts.on_process_0(lambda: config_lib.claim(workdir, config, ignore))
  if not (workdir / 'config.json').exists():
    raise errors.make(
      f"workdir '{workdir}'",
      f'no config.json on process {hosts.process_index()}',
      'the file that process 0 wrote',
      'give a directory that all hosts share, or a gs:// URL',
    )
  return workdir


# ---------------------------------------------------------------------------------------------
# The program: mesh, shapes, shardings and the update.


class Program:
  """Everything that follows from a config before any array is made.

  Args:
    config: config of one training run.
    devices: devices to compile for; None: those of this machine. A described topology, whose
      devices do not exist here, works too.

  Attributes:
    mesh: the device mesh.
    layout: the parameters, see training/layout.py.
    params: tree of ShapeDtypeStruct of every parameter, with its storage dtype and sharding.
    batch_sharding: the sharding of every field of a batch.
    batch: field name -> ShapeDtypeStruct with sharding.
    optimizer: optax transformation of the trained parameters.
    learning_rate: learning rate by update.
    state: training.state.State of ShapeDtypeStruct with shardings.
    microbatches: number of them in a batch.
    flops: FLOP of an update over all devices, of the LM head and of the rest; 0 before `compile`.

  Raises:
    SphinxError: the mesh, model and batch do not fit together.
  """

  def __init__(self, config: ConfigDict, devices: Sequence[Any] | None = None) -> None:
    self._config = config
    self.flops = flops.Flops({'lm_head': 0.0, 'other': 0.0}, 0.0)

    self.mesh = meshes.make_mesh(**config.mesh, devices=devices)
    self.microbatches = placement.microbatches(
      config.batch.size, config.batch.seq_len, config.optimizer.accumulate, self.mesh
    )
    self.batch_sharding = placement.batch_sharding(self.mesh)
    self._replicated = placement.replicated(self.mesh)

    model = families.build(config.model, self.mesh.devices.flat[0].platform)
    lora = config.get('lora')
    self._noise = layers.Noise(lora.dropout, lora.neftune) if lora else layers.QUIET
    apply = functools.partial(families.apply, model, noise=self._noise)
    self._features = functools.partial(families.features, model)
    self.layout = layouts.layout(config)
    shapes, axes = self.layout.shapes, self.layout.logical_axes
    self.params = placement.with_shardings(shapes, rules.shardings(axes, shapes, self.mesh))

    fields = batch_contract.spec(
      config.batch.size, config.batch.seq_len, config.batch.images, config.model.image_size
    )
    if config.cache_features:
      _check_frozen_encoders(config, axes)
      features = jax.eval_shape(self._features, self.params, fields['images'])
      fields = batch_contract.with_features(fields, features)
    self.batch = placement.with_shardings(fields, dict.fromkeys(fields, self.batch_sharding))

    settings = config.optimizer
    self.learning_rate = optimizers.schedule(
      lr=settings.lr, warmup=settings.warmup, decay_to=settings.decay_to, steps=config.steps
    )
    trained_axes, _ = states.split(axes, config.trainable)
    self.optimizer = optimizers.make_optimizer(
      name=settings.name,
      rate=self.learning_rate,
      logical_axes=trained_axes,
      betas=settings.betas,
      weight_decay=settings.weight_decay,
      clip=settings.clip,
      moment_dtype=settings.moment_dtype,
      b_rate=lora.b_rate if lora else 1.0,
    )
    self._scaled = config.model.dtype == 'float16'
    if self._scaled:
      self.optimizer = loss_scale.dynamic(self.optimizer)
    self.state = self._abstract_state()

    tasks, preference = len(config.mixture), config.get('preference')
    if preference:
      _check_only_adapters(trained_axes)
      # The reference makes the same of images if no adapter is outside of the language model.
      is_shared = all(layer.startswith('llm/') for layer in self.layout.scales)
      encode = functools.partial(families.encoded, model) if is_shared else None
      self._objective = preferences.objective(
        apply, tasks, preference.beta, config.loss_chunk, encode
      )
    else:
      self._objective = steps.likelihood(apply, tasks, config.loss_chunk)
    self._eval_step = jax.jit(steps.make_eval_step(self._objective), out_shardings=self._replicated)

  def _abstract_state(self) -> states.State:
    trained, frozen = states.split(self.params, self._config.trainable)
    opt_shardings = optimizers.state_shardings(
      self.optimizer, trained, placement.shardings(trained), self._replicated
    )
    return states.State(
      step=jax.ShapeDtypeStruct((), jnp.int32, sharding=self._replicated),
      trained=trained,
      frozen=frozen,
      opt_state=placement.with_shardings(
        jax.eval_shape(self.optimizer.init, trained), opt_shardings
      ),
    )

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    """The context in which the model constrains its activations to the mesh.

    An abstract mesh is enough, so the devices need not exist.
    """
    return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

  def trace(self) -> jax.stages.Traced:
    """Traces the update `(state, batch) -> (state, metrics)`, which donates the state."""
    update = steps.make_train_step(
      objective=self._objective,
      optimizer=self.optimizer,
      rate=self.learning_rate,
      accumulate=self.microbatches,
      seed=self._config.seed if any(self._noise) else None,
      scaled=self._scaled,
    )
    out_shardings = placement.shardings(self.state), self._replicated
    with self._on_mesh():
      return jax.jit(update, donate_argnums=0, out_shardings=out_shardings).trace(
        self.state, self.batch
      )

  def lower(self) -> jax.stages.Lowered:
    """Lowers the update to StableHLO."""
    return self.trace().lower()

  def lower_encoder(self) -> jax.stages.Lowered:
    """Lowers `(parameters, images) -> features` for the images of one microbatch."""
    settings, size = self._config.batch, self._config.model.image_size
    rows = settings.size // self.microbatches
    images = jax.ShapeDtypeStruct(
      (rows, settings.images, size, size, 3), jnp.uint8, sharding=self.batch_sharding
    )
    with self._on_mesh():
      encode = jax.jit(self._features, out_shardings=self.batch_sharding)
      return encode.lower(self.params, images)

  def compile(self) -> jax.stages.Compiled:
    """Compiles the update; logs parameters, mesh, time and memory."""
    began = time.monotonic()
    log.info(
      '%s: %.2f M parameters trained, %.2f M frozen, on %s',
      self._config.name,
      trees.count(self.state.trained) / 1e6,
      trees.count(self.state.frozen) / 1e6,
      ' x '.join(f'{axis} {size}' for axis, size in self.mesh.shape.items()),
    )
    traced = self.trace()
    with ThreadPoolExecutor(1) as background:
      counted = background.submit(self._count_flops, traced)
      compiled = traced.lower().compile()
    self.flops = counted.result()
    log.info('compiled in %.0f s, %s', time.monotonic() - began, _describe_memory(compiled))
    return compiled

  def _count_flops(self, traced: jax.stages.Traced) -> flops.Flops:
    """FLOP of an update, with plain kernels, because those of an accelerator are opaque."""
    is_mixture = families.active_share(self._config.model) < 1
    if is_mixture or self.mesh.devices.flat[0].platform != 'cpu':
      plain = plan.changed(self._config, {**flops.PLAIN, **plan.ONE_DEVICE})
      traced = Program(plain, [self.mesh.devices.flat[0]]).trace()
    return flops.count(traced, (), flops.loss_chunks(self._config))

  def evaluate(self, params: dict, validation: Mapping[str, list[dict]]) -> dict[str, float]:
    """Returns the means of `step.evaluate_loss` of each validation set.

    Args:
      params: tree of all parameters.
      validation: name -> list of numpy batches.
    """
    placed = {
      name: (placement.put(batch, self.batch_sharding) for batch in batches)
      for name, batches in validation.items()
    }
    with self._on_mesh():
      return steps.evaluate_loss(self._eval_step, params, placed)

  def init(self) -> dict:
    """Makes fresh parameters, each directly in its sharding and storage dtype."""

    def make(rng: jax.Array) -> dict:
      params = families.init(self._config.model, rng)
      return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, self.params)

    compiled_make = jax.jit(
      make,
      out_shardings=placement.shardings(self.params),
      compiler_options=placement.fast_compile_options(),
    )
    return compiled_make(jax.random.key(self._config.seed))

  def load(self, directory: checkpoints.Path) -> dict:
    """Reads the parameters of another run, and adds fresh adapters and the rows of new tokens.

    Frozen matrices are quantized while they are read.
    """
    flat = trees.flatten(self.params)
    shapes = {path: leaf for path, leaf in flat.items() if not adapters.is_adapter(path)}
    parent = load_bundle(directory)
    if parent.part:
      return self._load_part(directory, parent.part)
    held = parent.forms
    _check_form(self._config, directory, held)
    new_tokens = len(self._config.get('tokenizer_add', ()))
    if self.layout.forms or held or new_tokens:
      trained = {layer: matrix for layer, matrix in held.items() if layer not in self.layout.forms}
      arrays = widened.widen(stream.read(directory), trained, jnp.float32)
      if new_tokens:
        vocab, separate = self._config.model.llm.vocab, bool(self._config.get('lora'))
        arrays = grown.begin(arrays, vocab, new_tokens, separate)
      params = placing.place(arrays, trees.unflatten(shapes), self.layout.forms)
    else:
      params = checkpoints.load_params(directory, trees.unflatten(shapes))
    return trees.unflatten(trees.flatten(params) | self._fresh_adapters())

  def _load_part(self, directory: checkpoints.Path, part: str) -> dict:
    """Fresh parameters with those of a checkpoint of a part of the tree in their place."""
    used = _of_part(trees.flatten(self.params), part)
    stored_arrays = {path: array for path, array in stream.read(directory).items() if path in used}
    given = placing.place(stored_arrays, trees.unflatten(used))
    return trees.unflatten(trees.flatten(self.init()) | trees.flatten(given))

  def _fresh_adapters(self) -> dict[str, jax.Array]:
    if not self.layout.scales:
      return {}
    shardings = {
      path: leaf.sharding
      for path, leaf in trees.flatten(self.params).items()
      if adapters.is_adapter(path)
    }
    make = functools.partial(adapters.fresh, self.layout.shapes, self.layout.scales)
    return jax.jit(make, out_shardings=shardings)(jax.random.key(self._config.seed))

  def saved(self, params: Mapping) -> dict:
    """What the checkpoints of the run hold: with adapters the trained parameters alone."""
    if not self._config.get('lora'):
      return dict(params)
    trained, _ = states.split(params, self._config.trainable)
    scales = {
      path: leaf for path, leaf in trees.flatten(params).items() if adapters.is_adapter(path)
    }
    return trees.unflatten(trees.flatten(trained) | scales)

  def init_optimizer(self, trained: dict) -> Any:
    """Makes the optimizer's first state, directly in its sharding."""
    return jax.jit(self.optimizer.init, out_shardings=placement.shardings(self.state.opt_state))(
      trained
    )


def _check_form(
  config: ConfigDict, directory: checkpoints.Path, held: Mapping[str, stored.Matrix]
) -> None:
  """Raises SphinxError if a checkpoint in few bits has another form than the run freezes."""
  forms = {matrix.form for matrix in held.values()} - {config.get('frozen_dtype')}
  if forms:
    raise errors.make(
      f"init_from '{directory}'",
      f'kernels in {", ".join(forms)}',
      f"those of frozen_dtype '{config.get('frozen_dtype') or ''}'",
      'train adapters on it (--config=forkme:FILE,DIR,qlora), or widen it first '
      '(python -m sphinx_jax.mix_weights --inputs=DIR --output=WIDE)',
    )


def _check_frozen_encoders(config: ConfigDict, logical_axes: dict) -> None:
  """Raises SphinxError if the features of an image differ between updates, or do not exist."""
  group = families.feature_params(config.model)
  if group is None or not config.batch.images:
    raise errors.make(
      'cache_features',
      'batch.images 0' if group else 'a model that has no features of single images',
      'images, and encoders that see one of them at a time',
      "set cache_features to ''",
    )
  for path in trees.flatten(states.split(logical_axes, config.trainable)[0]):
    if path.split('/')[0] == group:
      pattern = next(p for p, _ in config.trainable if re.fullmatch(p, path))
      raise errors.make(
        'cache_features',
        f"the trained parameter {path}, by the pattern '{pattern}' of trainable",
        f'frozen {group}, whose features stay the same',
        f"begin trainable with ('{group}/.*', 'frozen'), or set cache_features to ''",
      )


def _check_only_adapters(trained: dict) -> None:
  """Raises SphinxError if a parameter of the reference of a preference run is trained."""
  for path in trees.flatten(trained):
    if not adapters.is_adapter(path):
      raise errors.make(
        'trainable',
        f'{path} in a run with a preference section',
        'adapters alone, because the model without them is the reference',
        "take (('.*/lora_[ab]', 'train'), ('.*', 'frozen'))",
      )


def _describe_memory(compiled: jax.stages.Compiled) -> str:
  """Memory of one device while a compiled step runs, for the log."""
  memory = compiled.memory_analysis()
  if memory is None:
    return 'memory unknown'
  arguments = memory.argument_size_in_bytes / 2**20
  temporaries = memory.temp_size_in_bytes / 2**20
  return f'one device: {arguments:.0f} MiB of state and batch, {temporaries:.0f} MiB of temporaries'


# ---------------------------------------------------------------------------------------------
# The data.


class Data(NamedTuple):
  """Data of a run.

  Attributes:
    batches: data position -> iterator (with `close`) of (numpy batch, next position).
    validation: returns name -> list of numpy batches. They are read in the background since
      `open_data`, while the update compiles. The call waits for them and raises their errors.
    bundle: what a checkpoint carries for inference.
    table: the mixture as text.
    summary: data position -> the mixture as text with the epochs so far and the skipped examples.
    files: path -> size and hash of the files that define the records of all sources.
    set_stages: sets learned weights, see `Pipeline.set_stages`.
  """

  batches: Callable[[int], Iterator[tuple[dict[str, np.ndarray], int]]]
  validation: Callable[[], dict[str, list[dict[str, np.ndarray]]]]
  bundle: Bundle
  table: str
  summary: Callable[[int], str]
  files: Mapping[str, str] = types.MappingProxyType({})
  set_stages: Callable[[mixtures.Stages], None] = lambda stages: None


def open_data(config: ConfigDict, local_rows: Sequence[int] | None = None) -> Data:
  """Opens the mixture and the validation sets of a run.

  Args:
    config: config of one training run.
    local_rows: the rows of each batch that this process reads; None: all.

  Raises:
    SphinxError: a source, tokenizer or setting is wrong.
  """
  tokenizer = open_tokenizer(config)
  _check_image_token(config, tokenizer)
  tokenizers.check_fits(tokenizer, config.tokenizer, config.model.llm.vocab)

  family = families.family(config.model)

  def open_pipeline(
    entries: Mapping[str, ConfigDict],
    sources: Mapping[str, Any],
    loss_weighting: str,
    **sampling: Any,
  ) -> Pipeline:
    return Pipeline(
      sources,
      weights={name: entry.weight for name, entry in entries.items()},
      tokenizer=tokenizer,
      template=dialog.Template(**config.dialog),
      config=PipelineConfig(
        batch_size=config.batch.size,
        seq_len=config.batch.seq_len,
        slots=config.batch.images,
        window=config.batch.window,
        visual_tokens=families.visual_tokens(config.model),
        max_length=families.max_length(config.model),
        image_size=config.model.image_size,
        slot_rule=slots.make(**family.slot_rule(config.model)),
        patch_limit=family.patch_limit(config.model),
        seed=config.seed,
        loss_weighting=loss_weighting,
        max_skipped=config.max_skipped,
        alpha=config.image.alpha,
        pairs=bool(config.get('preference')),
      ),
      local_rows=local_rows,
      **sampling,
    )

  sources, validation_sources = open_sources(config)
  caps = {name: entry.cap for name, entry in config.mixture.items() if entry.get('cap') is not None}
  mixture = open_pipeline(
    config.mixture, sources, config.loss_weighting, sampling=config.sampling, caps=caps
  )

  validation_pipelines = {
    name: open_pipeline({name: entry}, {name: validation_sources[name]}, 'token')
    for name, entry in config.validation.items()
  }

  def read_validation() -> dict[str, list[dict[str, np.ndarray]]]:
    tensorflow.load()  # Takes seconds, so it starts now even without validation sets.
    validation = {}
    for name, single in validation_pipelines.items():
      with contextlib.closing(single.batches()) as batches:
        validation[name] = [batch for batch, _ in itertools.islice(batches, config.eval_batches)]
    return validation

  # In the background, while the update compiles. Not a daemon thread: the end of the program must
  # not interrupt an import.
  background = ThreadPoolExecutor(1, thread_name_prefix='sphinx_jax validation')
  validation = background.submit(read_validation)
  background.shutdown(wait=False)

  return Data(
    batches=mixture.batches,
    validation=validation.result,
    bundle=Bundle(
      config, tokenizer.model_bytes, config.dialog.to_dict(), tokenizer.added, tokenizer.ids
    ),
    table=mixture.table(),
    summary=mixture.summary,
    files={
      path: content
      for source in (*sources.values(), *validation_sources.values())
      for path, content in source.files.items()
    },
    set_stages=mixture.set_stages,
  )


def learns_weights(config: ConfigDict, step: int) -> bool:
  """Whether the mixture gets new weights after an update."""
  is_learned = config.sampling.by == 'learned' and step < config.steps
  return is_learned and step % config.sampling.learned.every == 0


def learned_weights(config: ConfigDict, losses: Mapping[str, float]) -> dict[str, float]:
  """New weights of the mixture, the same on all processes; see mix/learned.py.

  Args:
    config: config of one training run whose `sampling.by` is 'learned'.
    losses: name of a validation set -> its mean loss.

  Raises:
    SphinxError: a loss is not finite.
  """
  settings = config.sampling.learned
  weights = learned.learned_weights(
    {name: entry.weight for name, entry in config.mixture.items()},
    losses,
    settings.reference_losses,
    settings.rate,
    settings.limit,
  )
  return hosts.broadcast(weights)  # Kinds of processors differ in the last bit of exp.


def _check_image_token(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> None:
  """Raises SphinxError if the id of visual tokens is not that of the tokenizer's image mark."""
  expected = families.family(config.model).image_token(config.model)
  got = tokenizer.specials.get(MARK)
  if expected is not None and got != expected:
    raise errors.make(
      f"tokenizer '{config.tokenizer}'",
      f'{MARK} with id {got}',
      f'id {expected}, which is model.image_token',
      'correct model.image_token, or take the tokenizer of the model',
    )


def open_sources(config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
  """Opens the sources of the mixture and of the validation sets.

  Returns:
    (mixture, validation), each name -> source.

  Raises:
    SphinxError: sources that cannot be opened; names all of them, not only the first.
  """
  sources: dict[str, dict[str, Any]] = {'mixture': {}, 'validation': {}}
  problems = []
  for group, opened in sources.items():
    for name, entry in config[group].items():
      try:
        if 'weight' not in entry:
          raise errors.make('entry', 'no weight', 'a number', "add 'weight'")
        opened[name] = datasets.open_source(entry, config.data_dir)
      except errors.SphinxError as error:
        problems.append(f'{group}.{name}: {error}')
  if problems:
    raise errors.SphinxError('\n'.join(problems))
  return sources['mixture'], sources['validation']


def open_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
  """Opens the tokenizer of a run, with the tokens that `config.tokenizer_add` names.

  Raises:
    SphinxError: as `_open_given_tokenizer`, or it has one of these tokens.
  """
  return added_tokens.add(_open_given_tokenizer(config), config.get('tokenizer_add', ()))


def _open_given_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
  """Opens `config.tokenizer` or, if that is empty, the tokenizer inside `config.init_from`.

  Special tokens that the dialogs need, and that a file does not have, get the ids behind its own.

  Raises:
    SphinxError: there is neither, or the file is not a tokenizer.
  """
  if config.tokenizer:
    specials = dialog.Template(**config.dialog).special_tokens
    return tokenizers.load(config.tokenizer).with_specials(specials)
  if not config.init_from:
    raise errors.make(
      'tokenizer',
      'neither a tokenizer nor init_from',
      'one of them',
      'give the path of a tokenizer.model',
    )
  parent = load_bundle(config.init_from)
  if parent.tokenizer is None:
    raise errors.make(
      f"init_from '{config.init_from}'",
      'a checkpoint without a tokenizer',
      'one with a tokenizer, because config.tokenizer is empty',
      'set config.tokenizer to the path of a tokenizer.model',
    )
  return parent.open_tokenizer()


# ---------------------------------------------------------------------------------------------
# The first state.


def restore_or_init(
  config: ConfigDict, program: Program, store: checkpoints.Store
) -> tuple[states.State, int, dict, mixtures.Stages]:
  """Returns the state to start from.

  It is the run's own newest undamaged checkpoint; without one, the parameters of `init_from`;
  without that, fresh parameters.

  Returns:
    (state, data position, sums of the open window of metrics, learned stages of the mixture).
  """
  restored = store.restore_newest(program.saved(program.params), program.state.opt_state)
  if restored is not None:
    params, opt_state, meta = restored
    if config.get('lora'):
      adapter_runs.check_base(meta, config.name, config.init_from)
      base = trees.flatten(program.load(config.init_from))
      params = trees.unflatten(base | trees.flatten(params))
    step, position, sums = meta['step'], meta['data_position'], meta['window']
    stages = meta.get('learned_stages', ())
    log.info('resuming from step %d', step)
  else:
    if config.init_from:
      log.info('starting from %s', config.init_from)
      params = program.load(config.init_from)
    else:
      params = program.init()
    trained, _ = states.split(params, config.trainable)
    opt_state = program.init_optimizer(trained)
    step, position, sums, stages = 0, 0, {}, ()
  trained, frozen = states.split(params, config.trainable)
  step = jax.device_put(jnp.int32(step), program.state.step.sharding)
  return states.State(step, trained, frozen, opt_state), position, sums, stages


def open_features(
  config: ConfigDict,
  program: Program,
  params: dict,
  batches: Iterator[tuple[dict[str, np.ndarray], int]],
) -> features_lib.Features:
  """Opens `cache_features`, for batches of a run whose frozen encoders have these parameters.

  Raises:
    SphinxError: the directory is in a bucket, or cannot be made.
  """
  return features_lib.Features(
    config.cache_features,
    program.lower_encoder(),
    params[families.feature_params(config.model)],
    program.batch_sharding,
    batches,
  )


def check_data(workdir: checkpoints.Path, data: Data) -> None:
  """Checks that the files of the data and the tokenizer are those that the run began with.

  A checkpoint of an older version has no record of its files, which are then not compared.

  Args:
    workdir: directory of a run with a checkpoint.
    data: the data as it is now.

  Raises:
    SphinxError: a file or the tokenizer differs.
  """
  try:
    meta = checkpoints.load_meta(workdir)
  except checkpoints.Damaged:  # `restore_or_init` reports it.
    return
  changed = datasets.changed_files(meta.get('data_files') or {}, data.files)
  if Bundle.from_meta(meta, workdir).tokenizer != data.bundle.tokenizer:
    changed.append('the tokenizer')
  if changed:
    raise errors.make(
      f"workdir '{workdir}'",
      f'data that changed since the run began: {"; ".join(changed)}',
      'the same examples in the same order',
      'restore the files, or start a new run in another --workdir '
      f"(--config.init_from='{workdir}' begins with the weights of this one)",
    )


def check_parent(config: ConfigDict, program: Program, data: Data) -> None:
  """Checks that `init_from` has the leaves and the tokenizer of this run; reads no weight.

  Views and prompts may change between stages. Other settings of the LLM are logged, because its
  weights were trained with those of the parent.

  Raises:
    SphinxError: it is no checkpoint, or its leaves or its tokenizer differ.
  """
  parent = load_bundle(config.init_from)
  if parent.part:
    _check_part(config, parent)
    return
  _check_form(config, config.init_from, parent.forms)
  model, tokenizer, ignored = config.model, data.bundle.tokenizer, ()
  if config.get('tokenizer_add'):
    model = ConfigDict(model.to_dict())
    model.llm.vocab, ignored = parent.config.model.llm.vocab, ('llm.vocab',)
    tokenizer = _open_given_tokenizer(config).model_bytes
  shapes, axes = families.abstract_params(model), families.logical_axes(model)
  checkpoints.check(config.init_from, stored.extend(shapes, axes, parent.forms)[0])
  different = [
    str(line)
    for line in differences(parent, data.bundle)
    if line.key.startswith('llm.') and line.key not in ignored
  ]
  if different:
    log.warning("init_from '%s': another LLM: %s", config.init_from, '; '.join(different))
  if parent.tokenizer != tokenizer:
    raise errors.make(
      f"init_from '{config.init_from}'",
      'another tokenizer',
      f"that of '{config.tokenizer}'",
      'train with the tokenizer that the checkpoint carries',
    )


def _of_part(flat: Mapping[str, Any], part: str) -> dict[str, Any]:
  """The leaves of a flat tree under one name at its top."""
  return {path: leaf for path, leaf in flat.items() if path.split('/')[0] == part}


def _check_part(config: ConfigDict, parent: Bundle) -> None:
  """Checks that a checkpoint of a part of the tree has all of this part of the run's model.

  It may have more: encoders that the model leaves out.

  Raises:
    SphinxError: leaves are missing or of another shape, or the run adds to parameters that the
      checkpoint does not have.
  """
  where = f"init_from '{config.init_from}'"
  if config.get('lora') or config.get('tokenizer_add'):
    raise errors.make(
      where,
      f'{parent.part} alone',
      'all weights, to which adapters or tokens are added',
      'train the rest first',
    )
  wanted = _of_part(trees.flatten(families.abstract_params(config.model)), parent.part)
  found = checkpoints.stored_leaves(checkpoints.locate(config.init_from))
  shape_of = lambda leaf: 'nothing' if leaf is None else f'{list(leaf.shape)}'
  wrong = [
    f'{path}: {shape_of(found.get(path))}, expected {shape_of(leaf)}'
    for path, leaf in wanted.items()
    if shape_of(found.get(path)) != shape_of(leaf)
  ]
  if wrong or not wanted:
    raise errors.make(
      where,
      f'{len(wrong)} differences: ' + '; '.join(wrong[:20]) if wrong else parent.part,
      f'the {parent.part} of the model config',
      'use the model config with which they were pretrained',
    )


class Parents(NamedTuple):
  """Checkpoints to mix in memory, and what measures the mixes.

  Attributes:
    program: program of the config.
    data: data of the config, with the validation sets.
    params: the parameter trees of the checkpoints, on their devices.
  """

  program: Program
  data: Data
  params: tuple[dict, ...]


def open_parents(config: ConfigDict, directories: Sequence[checkpoints.Path]) -> Parents:
  """Opens the validation sets and loads checkpoints onto the config's mesh.

  Args:
    config: config of one training run.
    directories: the checkpoints, all of the config's model.

  Raises:
    SphinxError: data, mesh or checkpoints do not fit the config.
  """
  program = Program(config)
  data = open_data(config, hosts.local_rows(program.batch_sharding, config.batch.size))
  for directory in directories:
    _check_form(config, directory, load_bundle(directory).forms)
    checkpoints.check(directory, program.params)
  params = tuple(checkpoints.load_params(directory, program.params) for directory in directories)
  return Parents(program, data, params)
