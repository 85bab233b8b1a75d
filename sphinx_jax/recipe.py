"""The paper's recipe from bytes to a page of results: `python -m sphinx_jax.recipe --config=configs/mini.py --workdir=DIR`.

The steps are a list of names in the config; each name has a section there whose `kind` says what is done:

    data      builds miniworld (and writes it as official datasets) and trains the tokenizer on its texts
    train     one training run (a stage), as `sphinx_jax.train` does it
    mix       interpolates the weights of two runs, with the curve of validation loss along the way
    evaluate  answers the held-out split of every task, with the image and blind, and scores
    report    draws the page

A finished step leaves `done.json` in its directory and is skipped by the next start; an interrupted training run goes on
from its last checkpoint, bit for bit.
"""

import functools
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

from absl import flags
from ml_collections import ConfigDict

from sphinx_jax import datasets as sources, mix_curve, mix_weights, train as train_door
from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.core import cli, config as config_lib, errors
from sphinx_jax.core.progress import log
from sphinx_jax.data import dialog, tokenizer as tokenizers
from sphinx_jax.data.record import BadExample
from sphinx_jax.evaluation import held_out as evaluation
from sphinx_jax.generate import load as loading
from sphinx_jax.miniworld import builder, export as official
from sphinx_jax.parallel import hosts
from sphinx_jax.report import page

FLAGS = flags.FLAGS


def run(config: ConfigDict, workdir: str | pathlib.Path) -> pathlib.Path:
  """Runs every step of the recipe that is not finished yet.

  Args:
    config: `steps` (names in order), and one section for each name.
    workdir: where everything is written; it belongs to this config from the first start on.

  Returns:
    The path of the report, or of the last step's directory where there is none.

  Raises:
    SphinxError: on an unknown step, or when the workdir belongs to another config.
  """
  workdir = train_door.claim(
    config,
    workdir,
    ignore=tuple(f'{name}.{setting}' for name in config.steps for setting in train_door.RESIZABLE),
  )
  for name in config.steps:
    if name not in config:
      raise errors.unknown('recipe step', name, [key for key in config if key != 'steps'])
    if config[name].kind not in KINDS:
      raise errors.unknown(f"kind of recipe step '{name}'", config[name].kind, KINDS)
  for number, name in enumerate(config.steps, 1):
    done = workdir / name / 'done.json'
    if hosts.broadcast(done.exists()):
      log.info(
        'step %d/%d %s: finished before in %.0f s',
        number,
        len(config.steps),
        name,
        json.loads(done.read_text())['seconds'],
      )
      continue
    log.info('step %d/%d %s', number, len(config.steps), name)
    began = time.monotonic()
    hosts.on_process_0(lambda: (workdir / name).mkdir(exist_ok=True))
    step = functools.partial(KINDS[config[name].kind], config, name, workdir)
    step() if config[name].kind in TOGETHER else hosts.on_process_0(step)
    _write_json(done, {'seconds': time.monotonic() - began, 'peak_rss_bytes': _peak_rss()})
    log.info('step %d/%d %s: %.0f s', number, len(config.steps), name, time.monotonic() - began)
  last = workdir / config.steps[-1]
  return workdir / 'report.html' if config[last.name].kind == 'report' else last


def _data(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Builds miniworld, as official files too where asked, and trains the tokenizer on the dialogs that the stages will see."""
  section = config[name]
  kinds = section.train.to_dict()
  heldout = {kind: section.heldout for kind in kinds}
  builder.build(
    workdir / name,
    {'train': kinds, 'validation': heldout, 'test': heldout},
    section.image_size,
    section.seed,
  )
  if section.official:
    official.write(workdir / name, workdir / name / 'official')
  model = tokenizers.train(_corpus(config, workdir, section.lines), section.vocab)
  (workdir / name / 'tokenizer.model').write_bytes(model)


def _corpus(config: ConfigDict, workdir: pathlib.Path, lines: int) -> Iterator[str]:
  """The first dialogs of every mixture entry of every stage, as the template renders them."""
  for stage in (
    stage_config(config, name, workdir) for name in config.steps if config[name].kind == 'train'
  ):
    template = dialog.Template(stage.dialog.system)
    for entry in stage.mixture.values():
      source = sources.open_source(entry, stage.data_dir)
      for index in range(min(lines, len(source))):
        try:
          yield template.render(source[index].turns)
        except BadExample:
          continue  # Counted and named by the pipeline, where it would be trained on.


def stage_config(config: ConfigDict, name: str, workdir: pathlib.Path) -> ConfigDict:
  """The run config of a stage; what an earlier step makes ('data/tokenizer.model', 'mix') is found in this workdir."""
  stage = ConfigDict({key: value for key, value in config[name].to_dict().items() if key != 'kind'})
  for name in ('data_dir', 'tokenizer', 'init_from'):
    if stage[name] and stage[name].split('/')[0] in config.steps:
      stage[name] = str(workdir / stage[name])
  return stage.lock()


def _train(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """A training run, in the directory of its step."""
  train_door.train(stage_config(config, name, workdir), workdir / name)


def _mix(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Validation losses along the line between two runs, then the mix of the lowest average as a checkpoint.

  The coefficient is the share of the first input. It is chosen on one half of the validation batches; `curve.json`, which
  the report draws, holds the losses of the other half.
  """
  section = config[name]
  stage = stage_config(config, section.inputs[0], workdir)
  line = mix_curve.open_line(stage, [workdir / parent for parent in section.inputs])
  domains = line.data.validation
  halves = {
    f'{half}/{domain}': batches[start::2]
    for domain, batches in domains.items()
    for start, half in enumerate(('choice', 'curve'))
  }
  points = mix_curve.curve(
    line.parents, section.coefficients, lambda params, _: line.program.evaluate(params, halves)
  )

  def average(point: dict, half: str) -> float:
    return sum(point[f'{half}/{domain}'] for domain in domains) / len(domains)

  share = min(points, key=lambda point: average(point, 'choice'))['coefficient']
  hosts.on_process_0(
    lambda: mix_weights.mix_checkpoints(
      [workdir / parent for parent in section.inputs], (share, 1 - share), workdir / name
    )
  )
  curve = [
    {
      'coefficient': point['coefficient'],
      **{domain: point[f'curve/{domain}'] for domain in domains},
    }
    for point in points
  ]
  _write_json(workdir / name / 'curve.json', curve)
  _write_json(workdir / name / 'choice.json', {'coefficient': share})
  verdict = page.curve_verdict(curve, share)
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


def _evaluate(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Answers and scores every task of the section with the weights of its checkpoint, and blind."""
  section = config[name]
  stage = stage_config(config, section.checkpoint, workdir)
  generator, meta, _ = loading.load(workdir / section.checkpoint, rows=section.batch_size)

  mean = evaluation.mean_image(
    evaluation.open_split(stage, section.tasks, 'train'), stage.model.image_size
  )
  evaluation.evaluate(
    generator,
    evaluation.open_split(stage, section.tasks, section.split),
    section.examples,
    mean,
    workdir / name,
    run=f'{section.checkpoint} at step {meta["step"]}',
  )


def _report(config: ConfigDict, name: str, workdir: pathlib.Path) -> None:
  """Draws the page from what the other steps left behind."""
  of_kind = {kind: [step for step in config.steps if config[step].kind == kind] for kind in KINDS}
  finished = {
    step: json.loads((workdir / step / 'done.json').read_text())
    for step in config.steps
    if step != name
  }
  mixed, evaluated = of_kind['mix'], of_kind['evaluate'][-1]
  page.write(
    workdir,
    evaluation=workdir / evaluated,
    metrics={step: workdir / step / 'metrics.jsonl' for step in of_kind['train']},
    curve=workdir / mixed[-1] / 'curve.json' if mixed else (),
    mixed=json.loads((workdir / mixed[-1] / 'choice.json').read_text())['coefficient']
    if mixed
    else 0.5,
    seconds={step: done['seconds'] for step, done in finished.items()},
    peak_rss_bytes=max([_peak_rss(), *(done['peak_rss_bytes'] for done in finished.values())]),
    config=config_lib.to_dict(config),
    aims=config[name].aims.to_dict(),
  )


KINDS: dict[str, Callable[[ConfigDict, str, pathlib.Path], None]] = {
  'data': _data,
  'train': _train,
  'mix': _mix,
  'evaluate': _evaluate,
  'report': _report,
}
TOGETHER = (
  'train',
  'mix',
)  # What all processes of a run do; the rest process 0 does, while the others wait.


def _peak_rss() -> int:
  """Most memory, in bytes, that this process has had resident."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024  # Linux counts in KiB.


def _write_json(file: os.PathLike, value: object) -> None:
  if hosts.process_index() == 0:
    evaluation.write_json(file, value)


def main() -> None:
  with hosts.session({'config': config_lib.to_dict(FLAGS.config), 'workdir': FLAGS.workdir}):
    print(f'made: {checkpoints.whole_path(run(FLAGS.config, FLAGS.workdir))}')


if __name__ == '__main__':
  cli.define_config('configs/mini.py')
  flags.DEFINE_string(
    'workdir', 'workdir/mini', 'Where everything is written; the same again goes on.'
  )
  cli.run(main)
