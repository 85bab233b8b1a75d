"""Runs the paper's recipe: `python -m sphinx_jax.recipe --config=mini --workdir=DIR`.

The config lists the names of the steps in order. Each name has a section in the config, and the
section's `kind` selects the work:

    data      builds miniworld (also as dataset files) and trains the tokenizer on its texts
    pretrain  trains encoders alone, each by an objective of its own
    train     one training run (a stage), as `sphinx_jax.train` does it
    mix       interpolates the weights of two runs and measures the validation loss between them
    losses    measures the losses of a checkpoint on held-out sets, batch by batch
    evaluate  answers the held-out split of every task, with the image and blind, and scores it
    report    draws the page

A finished step leaves `done.json` in its directory, and the next start skips it. An interrupted
training run resumes from its last checkpoint, bit for bit.
"""

import functools
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

from absl import flags
from ml_collections import ConfigDict

from sphinx_jax import datasets, run, settings
from sphinx_jax.checkpoint import mixing, store as checkpoints
from sphinx_jax.checkpoint.bundle import check_same_model, load_bundle
from sphinx_jax.core import cli, config as config_lib, errors, files, paths, tables
from sphinx_jax.core.progress import log
from sphinx_jax.data import dialog, tokenizer as tokenizers
from sphinx_jax.data.record import BadExample
from sphinx_jax.evaluation import halves, held_out, weight_curve
from sphinx_jax.generate import load as loading
from sphinx_jax.miniworld import builder, export
from sphinx_jax.parallel import hosts
from sphinx_jax.pretraining import loop as pretraining
from sphinx_jax.report import recipe_page

FLAGS = flags.FLAGS

# Entry points that steps call. Nothing imports an entry point, so they are found by name.
ENTRY_POINTS = tables.Table('entry point', {'train': 'sphinx_jax.train:train'})


def run_recipe(config: ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
  """Runs every step of the recipe that is not finished.

  Args:
    config: `steps` (names in order), and one section for each name.
    workdir: directory of everything that is written. From the first start on it belongs to this
      config.

  Returns:
    The path of the report or, if the last step is not a report, of the last step's directory.

  Raises:
    SphinxError: a step or its kind is unknown, the workdir belongs to another config or is in use,
      or a step is finished whose inputs are not.
  """
  settings.check_steps(config)
  resizable = tuple(f'{name}.{setting}' for name in config.steps for setting in run.RESIZABLE)
  workdir = run.claim(config, workdir, ignore=resizable)
  with hosts.exclusive(workdir, 'workdir'):
    _run_steps(config, workdir)
  last = config.steps[-1]
  return workdir / 'report.html' if config[last].kind == 'report' else workdir / last


def _run_steps(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Runs every step that is not finished.

  Raises:
    SphinxError: a step is finished that comes after one that is not: it was made from files that
      are gone.
  """
  finished = hosts.broadcast(
    [name for name in config.steps if (workdir / name / 'done.json').exists()]
  )
  if finished != list(config.steps[: len(finished)]):
    missing = next(name for name in config.steps if name not in finished)
    later = [name for name in finished if config.steps.index(name) > config.steps.index(missing)]
    raise errors.make(
      f"workdir '{workdir}'",
      f"step '{missing}' not finished but later ones finished ({', '.join(later)})",
      'steps that were made from each other',
      'remove the folders of the later steps too, or give another --workdir',
    )
  for number, name in enumerate(config.steps, 1):
    title = f'step {number}/{len(config.steps)} {name}'
    done = workdir / name / 'done.json'
    if name in finished:
      log.info('%s: already finished in %.0f s', title, files.read_json(done)['seconds'])
      continue
    log.info('%s', title)
    log.info('%s: %.0f s', title, run_step(config, name, workdir))


def run_step(config: ConfigDict, name: str, workdir: pathlib.Path) -> float:
  """Runs one step, whose predecessors are finished, and leaves its `done.json`.

  It runs on all processes, or on process 0 while the others wait.

  Returns:
    The seconds that it took.
  """
  began = time.monotonic()
  folder = workdir / name
  hosts.on_process_0(lambda: paths.make_folder(folder))
  kind = config[name].kind
  step = functools.partial(KINDS[kind], config, name, workdir)
  with files.writing(folder):
    if kind in ON_ALL_PROCESSES:
      step()
    else:
      hosts.on_process_0(step)
  seconds = time.monotonic() - began
  _write_json(folder / 'done.json', {'seconds': seconds, 'peak_rss_bytes': _peak_rss()})
  return seconds


def data_step(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Builds miniworld and trains the tokenizer on the texts of the stages."""
  section = config[name]
  train_sizes = section.train.to_dict()
  heldout_sizes = dict.fromkeys(train_sizes, section.heldout)
  builder.build(
    workdir / name,
    {'train': train_sizes, 'validation': heldout_sizes, 'test': heldout_sizes},
    section.image_size,
    section.seed,
    scale=section.get('scale', 1.0),
  )
  if section.dataset_files:
    export.write(workdir / name, workdir / name / 'official')
  model = tokenizers.train(_corpus(config, workdir, section.lines), section.vocab)
  files.write_atomic(workdir / name / 'tokenizer.model', model)


def _corpus(config: ConfigDict, workdir: pathlib.Path, lines: int) -> Iterator[str]:
  """Yields the first `lines` dialogs of every mixture entry of every stage, as rendered text.

  Special tokens, which the tokenizer does not learn, end a line.
  """
  for name in run.training_steps(config):
    stage = run.training_run(config, name, workdir)
    template = dialog.Template(**stage.dialog)
    for entry in stage.mixture.values():
      source = datasets.open_source(entry, stage.data_dir)
      for index in range(min(lines, len(source))):
        try:
          text = template.render(source[index].turns)
        except BadExample:
          continue  # The pipeline counts and names it when it would be trained on.
        for token in template.special_tokens:
          text = text.replace(token, '\n')
        yield text


def _pretrain(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Trains encoders in the directory of the step."""
  pretraining.pretrain(run.section(config, name, workdir), workdir / name)


def _train(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Trains one stage in the directory of its step."""
  ENTRY_POINTS['train'](run.training_run(config, name, workdir), workdir / name)


def _mix(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Measures mixes of two runs and writes the one of the lowest average loss as a checkpoint.

  The coefficient is the share of the first input. It is chosen on one half of the validation
  batches. `curve.json`, which the report draws, has the losses of the other half.
  """
  section = config[name]
  inputs = [workdir / parent for parent in section.inputs]
  stage = run.training_run(config, section.inputs[0], workdir)
  check_same_model(name, inputs, [load_bundle(directory) for directory in inputs])
  parents = run.open_parents(stage, inputs)
  domains = parents.data.validation()
  sets = {
    f'{half}/{domain}': batches
    for half in (halves.CHOICE, halves.REPORT)
    for domain, batches in halves.of_batches(domains, half).items()
  }
  points = weight_curve.measure(
    parents.params,
    section.coefficients,
    lambda params, _: parents.program.evaluate(params, sets),
  )

  def choice_loss(point: dict[str, float]) -> float:
    return sum(point[f'{halves.CHOICE}/{domain}'] for domain in domains) / len(domains)

  share = min(points, key=choice_loss)['coefficient']
  hosts.on_process_0(lambda: mixing.mix_checkpoints(inputs, (share, 1 - share), workdir / name))

  curve = []
  for point in points:
    losses = {domain: point[f'{halves.REPORT}/{domain}'] for domain in domains}
    curve.append({'coefficient': point['coefficient'], **losses})
  _write_json(workdir / name / 'curve.json', curve)
  _write_json(workdir / name / 'choice.json', {'coefficient': share})
  verdict = recipe_page.curve_verdict(curve, share)
  log.info(
    'mixed %g of %s with %g of %s: loss %.4f, parents %.4f and %.4f%s',
    share,
    section.inputs[0],
    1 - share,
    section.inputs[1],
    verdict['mixed'],
    *verdict['parents'].values(),
    '' if verdict['ok'] else '; WORSE than the better parent',
  )


def _losses(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Measures the losses of a checkpoint on the sets of the section.

  The examples and their order are those of the section's seed, so that checkpoints of training runs
  with other seeds are compared on the same batches.
  """
  section = config[name]
  stage = run.training_run(config, section.like, workdir).copy_and_resolve_references()
  with stage.unlocked():
    stage.validation, stage.eval_batches = section.sets, section.batches
    stage.seed = section.seed
  opened = run.open_parents(stage, [workdir / section.checkpoint])
  batches = {
    (held_out_set, number): [batch]
    for held_out_set, group in opened.data.validation().items()
    for number, batch in enumerate(group)
  }
  losses = opened.program.evaluate(opened.params[0], batches)
  by_set = {
    held_out_set: [losses[key] for key in batches if key[0] == held_out_set]
    for held_out_set in section.sets
  }
  _write_json(workdir / name / 'losses.json', by_set)


def _evaluate(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Answers and scores every task of the section with its checkpoint, with the image and blind."""
  section = config[name]
  stage = run.training_run(config, section.get('like', section.checkpoint), workdir)
  model, meta, _ = loading.load_run(workdir / section.checkpoint)
  mean = held_out.mean_image(
    held_out.open_split(stage, section.tasks, 'train'), stage.model.image_size, stage.image.alpha
  )
  held_out.evaluate(
    model,
    held_out.open_split(stage, section.tasks, section.split),
    section.examples,
    mean,
    workdir / name,
    run=f'{section.checkpoint} at step {meta["step"]}',
    weights=checkpoints.identity(workdir / section.checkpoint),
    batch_size=section.batch_size,
    blind=section.get('blind', True),
  )


def _report(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Draws the page from the files of the other steps."""
  others = [step for step in config.steps if step != name]
  finished = {step: files.read_json(workdir / step / 'done.json') for step in others}
  seconds = {step: done['seconds'] for step, done in finished.items()}
  peaks = [done['peak_rss_bytes'] for done in finished.values()]

  mix_steps = [step for step in others if config[step].kind == 'mix']
  curve, coefficient = (), 0.5
  if mix_steps:
    folder = workdir / mix_steps[-1]
    curve = folder / 'curve.json'
    coefficient = files.read_json(folder / 'choice.json')['coefficient']

  evaluate_steps = [step for step in others if config[step].kind == 'evaluate']
  metrics = {step: workdir / step / 'metrics.jsonl' for step in run.training_steps(config)}
  objectives = {
    name: workdir / step / name / 'metrics.jsonl'
    for step in others
    if config[step].kind == 'pretrain'
    for name in config[step].objectives
  }
  recipe_page.write(
    workdir,
    evaluation=workdir / evaluate_steps[-1],
    metrics=metrics,
    pretraining=objectives,
    curve=curve,
    mixed=coefficient,
    seconds=seconds,
    peak_rss_bytes=max([_peak_rss(), *peaks]),
    config=config_lib.to_dict(config),
    targets=config[name].targets.to_dict(),
    studies=config[name].get('studies', ()),
  )


KINDS: dict[str, Callable[[ConfigDict, str, pathlib.Path], None]] = {
  'data': data_step,
  'pretrain': _pretrain,
  'train': _train,
  'mix': _mix,
  'losses': _losses,
  'evaluate': _evaluate,
  'report': _report,
}
# Process 0 does the other kinds while the others wait.
ON_ALL_PROCESSES = ('pretrain', 'train', 'mix', 'losses')


def _peak_rss() -> int:
  """The largest resident memory of this process so far, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024  # Linux counts in KiB.


def _write_json(path: os.PathLike, value: object) -> None:
  """Writes JSON on process 0 only."""
  if hosts.process_index() == 0:
    files.write_json(path, value)


def main() -> None:
  """Runs the recipe with the settings of the command line."""
  settings.check_recipe(FLAGS.config)
  with hosts.session({'config': config_lib.to_dict(FLAGS.config), 'workdir': FLAGS.workdir}):
    result = run_recipe(FLAGS.config, FLAGS.workdir)
    print(f'result: {checkpoints.absolute_path(result)}')


if __name__ == '__main__':
  cli.define_config('mini')
  cli.define_path(
    'workdir',
    'workdir/mini',
    'Directory of everything that is written. The same directory again resumes.',
  )
  cli.run(main)
