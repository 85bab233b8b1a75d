"""Trains one run.

    python -m sphinx_jax.train --config=forkme:my.jsonl --workdir=DIR [--config.a.b=c]

`train` is the story of a run from top to bottom: config, mesh, data, shapes, shardings,
compilation, arrays, loop, summary. After an interruption the same command resumes from the run's
last checkpoint, with bit-identical losses. On another mesh or number of hosts it resumes with the
same examples in the same order, and the losses differ only by rounding. On many hosts the same
command runs on each of them (parallel/hosts.py describes how they find each other).

docs/pods.md has the table of exit codes.
"""

import contextlib
import functools
import os

from absl import flags
from ml_collections import ConfigDict

from sphinx_jax import run, settings
from sphinx_jax.checkpoint import adapter_runs, store as checkpoints
from sphinx_jax.core import batch as batch_contract, cli, config as config_lib, errors
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.data import mixture
from sphinx_jax.models import families
from sphinx_jax.parallel import hosts, placement
from sphinx_jax.planning import peak
from sphinx_jax.training import wandb_run, writer as writers
from sphinx_jax.training.profile import Profile
from sphinx_jax.training.stopping import Stopping

FLAGS = flags.FLAGS


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, float]:
  """Trains to `config.steps`, from scratch or from the run's last checkpoint.

  Args:
    config: config of one training run, see configs/forkme.py.
    workdir: the run's directory, for config.json, metrics.jsonl, tensorboard/ and checkpoints/.
      It may be a gs:// URL. With many hosts, all of them must see it.

  Returns:
    The last metrics by their names in metrics.jsonl, `validation/NAME` included.

  Raises:
    SphinxError: the config, data, mesh or checkpoint is wrong; another process trains in the
      workdir; a loss is not finite; the disk is full.
    SystemExit: after SIGTERM or Ctrl-C, once the run is saved.
  """
  settings.check_run(config)
  config = run.with_reference_losses(run.completed(config))
  wandb_run.check(config.wandb)
  workdir = run.claim(config, workdir, ignore=run.RESIZABLE)
  latest = hosts.broadcast(checkpoints.latest(workdir))
  if latest == config.steps:
    with contextlib.suppress(checkpoints.Damaged):  # restore_or_init reports damage below.
      metrics = checkpoints.load_meta(workdir)['metrics']
      log.info('%s: already finished', workdir)
      return metrics

  with contextlib.ExitStack() as stack:
    stack.enter_context(hosts.exclusive(workdir, 'workdir'))

    # Mesh, data, shapes, shardings and compilation: these are checked against each other before
    # anything large is made.
    program = run.Program(config)
    data = run.open_data(config, hosts.local_rows(program.batch_sharding, config.batch.size))
    log.info('mixture of %s:\n%s', config.name, data.table)
    if latest is not None:
      run.check_data(workdir, data)
    elif config.init_from:
      run.check_parent(config, program, data)
    train_step = program.compile()
    validation = data.validation()  # Read while the update compiled.

    # Arrays, and everything that has to be closed.
    store = stack.enter_context(
      checkpoints.Store(workdir, config.checkpoint.keep, config.checkpoint.keep_every)
    )
    state, position, sums, stages = run.restore_or_init(config, program, store)
    first = int(state.step)
    base = adapter_runs.base(config.init_from) if config.get('lora') else {}
    is_writer, also = hosts.process_index() == 0, None
    if config.wandb and is_writer:
      also = functools.partial(
        wandb_run.write, stack.enter_context(wandb_run.start(config, workdir))
      )
    writer = stack.enter_context(
      contextlib.closing(writers.Writer(workdir, first, is_writer, also))
    )
    if stages:
      data.set_stages(stages)
    batches = data.batches(position)
    stack.callback(lambda: batches.close())  # Learned weights replace the iterator.
    if config.cache_features:
      features = stack.enter_context(run.open_features(config, program, state.params, batches))
    bar = stack.enter_context(
      Progress(total=config.steps, start=first, what=config.name, unit='step')
    )
    stopping = stack.enter_context(Stopping(str(workdir)))
    profile = stack.enter_context(Profile(config.profile, workdir))
    peak_rate = peak.flops_per_second(list(program.mesh.devices.flat), config.model.dtype)
    flops = program.flops.parts
    label_flops = flops['lm_head'] / (config.batch.size * config.batch.seq_len)
    window = writers.Window(tuple(config.mixture), sums, flops['other'], label_flops, peak_rate)

    for step in range(first + 1, config.steps + 1):
      # Update.
      profile.begin(step)
      with window.waiting():
        batch, position = features.next(state.params) if config.cache_features else next(batches)
      if step == first + 1:
        batch_contract.check(batch, families.visual_tokens(config.model))
      state, metrics = train_step(state, placement.put(batch, program.batch_sharding))
      profile.end(step, metrics)
      window.add(step, metrics)  # Reads the metrics of the step before while this one runs.

      # Metrics and validation.
      last, learns = step == config.steps, run.learns_weights(config, step)
      if last or step % config.log_every == 0:
        window.read()
        writer.write(step, window.close())
      evaluates = last or learns or (config.eval_every and step % config.eval_every == 0)
      if validation and evaluates:
        with window.pause():
          losses = program.evaluate(state.params, validation)
        writer.write(step, {f'validation/{name}': value for name, value in losses.items()})

      # Learned weights of the mixture.
      if learns:
        window.read()  # Raises if the loss is not finite.
        weights = run.learned_weights(config, losses)
        shown = ', '.join(f'{name} {weight:.3f}' for name, weight in weights.items())
        log.info('step %d: new weights: %s', step, shown)
        writer.write(step, {f'weight/{name}': weight for name, weight in weights.items()})
        stages = mixture.add_stage(stages, position, config.batch.window, weights)
        batches.close()
        data.set_stages(stages)
        batches = data.batches(position)
        if config.cache_features:
          features.restart(batches)

      # Checkpoint.
      stop = stopping.after(step, last)
      if last or step % config.checkpoint.every == 0 or stop:
        window.read()  # Raises if the loss is not finite: such a step is never saved.
        meta = {
          **data.bundle.to_meta(),
          **base,
          'data_position': position,
          'data_files': dict(data.files),
          'learned_stages': stages,
          'window': window.state(),
          'metrics': writer.last,
        }
        store.save(step, program.saved(state.params), state.opt_state, meta)
      bar.update(note=writers.note(writer.last))
      if stop:
        log.info('stopped at step %d; run the same command again to resume', step)
        raise SystemExit(128 + stop)  # The store finishes the save while it closes.

  # Summary.
  log.info('the mixture at the end:\n%s', data.summary(position))
  losses = ', '.join(
    f'{name} {value:.4f}'
    for name, value in writer.last.items()
    if name.startswith(('loss', 'validation'))
  )
  log.info('%s: %d steps; %s', workdir, config.steps, losses)
  return writer.last


def main() -> None:
  """Trains with the settings of the command line."""
  if not FLAGS.workdir:
    raise errors.make('--workdir', 'nothing', 'a directory for the run', 'give --workdir=DIR')
  settings.check_run(FLAGS.config)  # Before the config is compared between hosts.
  with hosts.session({'config': config_lib.to_dict(FLAGS.config), 'workdir': FLAGS.workdir}):
    train(FLAGS.config, FLAGS.workdir)


if __name__ == '__main__':
  cli.define_config()
  cli.define_path(
    'workdir', None, 'Directory of the run: a new one, or that of an interrupted run.'
  )
  cli.run(main)
