"""One training run: `python -m sphinx_jax.train --config=configs/forkme.py --workdir=DIR [--config.a.b=c]`.

`train` is the story of a run, top to bottom: config, mesh, data, shapes, layouts, compilation, arrays, loop, last words.
The same command after an interruption goes on from the run's last checkpoint, with bit-identical losses; on another mesh or
number of hosts, with the same examples in the same order, and losses that differ by roundings. On many hosts the same
command runs on each (parallel/hosts.py says how they find each other).

Exit codes: 0 finished; 2 an error to be mended; 143 or 130 asked to stop, saved; 75 another host is gone, saved before: run it
again on all hosts.
"""

import base64
import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sphinx_jax import datasets as sources
from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.core import batch as contract, cli, config as config_lib, errors
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.data import dialog, pipeline, tokenizer as tokenizers
from sphinx_jax.models import sphinx
from sphinx_jax.parallel import hosts, placement
from sphinx_jax.run import Program
from sphinx_jax.training import state as states, writer as writers
from sphinx_jax.training.stopping import Stopping

FLAGS = flags.FLAGS
# How a run uses its machine may change between starts: a smaller slice takes more microbatches. Only roundings differ.
RESIZABLE = (
  'mesh',
  'checkpoint',
  'optimizer.accumulate',
  'loss_chunk',
  'model.remat',
  'model.attention',
  'model.scan_unroll',
)


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, float]:
  """Trains, from wherever the run stands, to `config.steps`.

  Args:
    config: one training run, see configs/forkme.py.
    workdir: the run's directory; gets config.json, metrics.jsonl, tensorboard/ and checkpoints/. It may be a gs:// URL;
      many hosts must all see it.

  Returns:
    The last metrics, by the names of metrics.jsonl, `validation/NAME` included.

  Raises:
    SphinxError: a config, data, mesh or checkpoint that does not fit; a loss that is not finite; a full disk.
    SystemExit: after SIGTERM or Ctrl-C, once the run is saved.
  """
  workdir = claim(config, workdir, ignore=RESIZABLE)
  before = hosts.broadcast(checkpoints.latest(workdir))
  if before == config.steps:
    with contextlib.suppress(checkpoints.Damaged):  # What that means is for `start` to say.
      metrics = checkpoints.load_meta(workdir)['metrics']
      log.info('%s: finished before', workdir)
      return metrics

  # Mesh, data, shapes, layouts, compilation: nothing large is made before all of them fit together.
  program = Program(config)
  data = open_data(config, hosts.local_rows(program.rows, config.batch.size))
  log.info('mixture of %s:\n%s', config.name, data.table)
  if before is None and config.init_from:
    check_parent(config, program, data)
  train_step = program.compile()

  with contextlib.ExitStack() as stack:
    store = stack.enter_context(
      checkpoints.Store(workdir, config.checkpoint.keep, config.checkpoint.get('keep_every', 0))
    )
    state, position, sums = start(config, program, store)
    first = int(state.step)
    writer = stack.enter_context(
      contextlib.closing(writers.Writer(workdir, first, hosts.process_index() == 0))
    )
    batches = stack.enter_context(contextlib.closing(data.batches(position)))
    bar = stack.enter_context(
      Progress(total=config.steps, start=first, what=config.name, unit='step')
    )
    stopping = stack.enter_context(Stopping(str(workdir)))
    window = writers.Window(tuple(config.mixture), sums)

    for step in range(first + 1, config.steps + 1):
      with window.waiting():
        batch, position = next(batches)
      if step == first + 1:
        contract.check(batch, sphinx.visual_tokens(config.model))
      state, metrics = train_step(state, placement.put(batch, program.rows))
      window.add(step, metrics)  # Reads the step before, now that this one is on its way.

      last = step == config.steps
      if last or step % config.log_every == 0:
        window.read()
        writer.write(step, window.close())
      if data.validation and (last or step % config.eval_every == 0):
        with window.pause():
          losses = program.evaluate(state.params, data.validation)
        writer.write(step, {f'validation/{name}': value for name, value in losses.items()})
      stop = stopping.after(step, last)
      if last or step % config.checkpoint.every == 0 or stop:
        window.read()  # A step that is not finite is never saved.
        store.save(
          step,
          state.params,
          state.opt_state,
          data.carried
          | {'data_position': position, 'window': window.state(), 'metrics': writer.last},
        )
      bar.update(note=f'loss {writer.last["loss"]:.3f}' if 'loss' in writer.last else '')
      if stop:
        log.info('stopped at step %d; run the same command again to go on', step)
        raise SystemExit(128 + stop)  # The store waits for the save on the way out.

  log.info('the mixture at the end:\n%s', data.summary(position))
  losses = {
    name: value for name, value in writer.last.items() if name.startswith(('loss', 'validation'))
  }
  log.info(
    '%s: %d steps; %s',
    workdir,
    config.steps,
    ', '.join(f'{name} {value:.4f}' for name, value in losses.items()),
  )
  return writer.last


def claim(
  config: ConfigDict, workdir: str | os.PathLike, ignore: tuple[str, ...] = ()
) -> epath.Path:
  """As `core.config.claim`, by one process for all; they must see the same directory."""
  hosts.on_process_0(lambda: config_lib.claim(workdir, config, ignore))
  workdir = checkpoints.whole_path(workdir)
  if not (workdir / 'config.json').exists():
    raise errors.make(
      f"workdir '{workdir}'",
      f'nothing there on process {hosts.process_index()}',
      'what process 0 wrote there',
      'give a directory that all hosts share, or a gs:// URL',
    )
  return workdir


class Data(NamedTuple):
  """What a run trains on and measures itself by.

  Attributes:
    batches: data position -> iterator (with `close`) of (numpy batch, next position).
    validation: name -> list of numpy batches.
    carried: what the checkpoint keeps for inference: `config`, `tokenizer` (base64), `dialog`.
    table: the mixture as text.
    summary: data position -> the mixture as text with the epochs so far, and what was left out.
  """

  batches: Callable[[int], Any]
  validation: dict[str, list[dict]]
  carried: dict[str, Any]
  table: str
  summary: Callable[[int], str]


def open_data(config: ConfigDict, mine: Sequence[int] | None = None) -> Data:
  """Opens the mixture and the validation sets of a run.

  Args:
    config: of the run.
    mine: the rows of each batch that this process reads; None: all.

  Raises:
    SphinxError: a source, tokenizer or setting that does not fit.
  """
  tokenizer = open_tokenizer(config)
  if tokenizer.vocab_size > config.model.llm.vocab:
    raise errors.make(
      f"tokenizer '{config.tokenizer}'",
      f'{tokenizer.vocab_size} ids',
      f'at most model.llm.vocab {config.model.llm.vocab}',
      'raise the vocabulary or take another tokenizer',
    )

  visual_tokens = sphinx.visual_tokens(config.model)

  def open_mixture(
    entries: ConfigDict, opened: Mapping[str, Any], loss_weighting: str, **settings
  ) -> pipeline.Pipeline:
    return pipeline.Pipeline(
      opened,
      {name: entry.weight for name, entry in entries.items()},
      tokenizer,
      dialog.Template(config.dialog.system),
      config.batch,
      visual_tokens,
      config.model.image_size,
      config.seed,
      loss_weighting,
      mine,
      max_skipped=config.get('max_skipped', 0.5),
      **settings,
    )

  trained, held_out = open_sources(config)
  caps = {name: entry.cap for name, entry in config.mixture.items() if entry.get('cap') is not None}
  mixture = open_mixture(
    config.mixture, trained, config.loss_weighting, sampling=config.get('sampling'), caps=caps
  )
  validation = {}
  for name, entry in config.validation.items():
    of_one = open_mixture(ConfigDict({name: entry}), {name: held_out[name]}, 'token')
    with contextlib.closing(of_one.batches()) as batches:
      validation[name] = [batch for batch, _ in itertools.islice(batches, config.eval_batches)]
  return Data(
    mixture.batches,
    validation,
    {
      'config': config_lib.to_json(config),
      'tokenizer': base64.b64encode(tokenizer.model_bytes).decode(),
      'dialog': config.dialog.to_dict(),
    },
    mixture.table(),
    mixture.summary,
  )


def open_sources(config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
  """The sources of the mixture and of the validation sets, by name.

  Raises:
    SphinxError: names all that cannot be opened, not only the first.
  """
  opened, wrong = {'mixture': {}, 'validation': {}}, []
  for group, found in opened.items():
    for name, entry in config[group].items():
      try:
        found[name] = sources.open_source(entry, config.data_dir)
      except errors.SphinxError as error:
        wrong.append(f'{group}.{name}: {error}')
  if wrong:
    raise errors.SphinxError('\n'.join(wrong))
  return opened['mixture'], opened['validation']


def open_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
  """The tokenizer of `config.tokenizer`; where that is empty, the one inside `init_from`.

  Raises:
    SphinxError: neither is given, or not what it should be.
  """
  if config.tokenizer:
    return tokenizers.load(config.tokenizer)
  if not config.init_from:
    raise errors.make(
      'tokenizer',
      'neither a tokenizer nor init_from',
      'one of them',
      'give the path of a tokenizer.model',
    )
  return tokenizers.Tokenizer(
    base64.b64decode(checkpoints.load_meta(config.init_from)['tokenizer'])
  )


def start(
  config: ConfigDict, program: Program, store: checkpoints.Store
) -> tuple[states.State, int, dict]:
  """The state to go on from: the run's own newest whole checkpoint, or the parameters of `init_from`, or scratch.

  Returns:
    (state, data position, sums of the open window of metrics).
  """
  restored = store.newest(program.params, program.state.opt_state)
  if restored is not None:
    params, opt_state, meta = restored
    step, position, sums = meta['step'], meta['data_position'], meta['window']
    log.info('going on from step %d', step)
  else:
    if config.init_from:
      log.info('starting from %s', config.init_from)
      params = checkpoints.load_params(config.init_from, program.params)
    else:
      params = program.init()
    opt_state = program.init_optimizer(states.split(params, config.trainable)[0])
    step, position, sums = 0, 0, {}
  trained, frozen = states.split(params, config.trainable)
  step = jax.device_put(jnp.int32(step), program.state.step.sharding)
  return states.State(step, trained, frozen, opt_state), position, sums


def check_parent(config: ConfigDict, program: Program, data: Data) -> None:
  """Refuses an `init_from` that does not fit: not a checkpoint, other leaves, another tokenizer."""
  checkpoints.check(config.init_from, program.params)
  if checkpoints.load_meta(config.init_from).get('tokenizer') != data.carried['tokenizer']:
    raise errors.make(
      f"init_from '{config.init_from}'",
      'another tokenizer',
      f"that of '{config.tokenizer}'",
      'train with the tokenizer that the checkpoint carries',
    )


def main() -> None:
  if not FLAGS.workdir:
    raise errors.make('--workdir', 'nothing', 'a directory for the run', 'give --workdir=DIR')
  with hosts.session({'config': config_lib.to_dict(FLAGS.config), 'workdir': FLAGS.workdir}):
    train(FLAGS.config, FLAGS.workdir)


if __name__ == '__main__':
  cli.define_config()
  flags.DEFINE_string(
    'workdir', None, "The run's directory: new, or that of an interrupted run of the same config."
  )
  cli.run(main)
