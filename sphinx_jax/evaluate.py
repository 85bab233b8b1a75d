"""Scores a checkpoint.

On the published benchmarks (configs/benchmarks.py), from their official files:

    python -m sphinx_jax.evaluate --checkpoint=DIR --benchmarks=refcoco_val,mme --root=DATA --output=DIR [--limit=N]

with a run of ours, or an official SPHINX folder. --output holds NAME.jsonl (every answer with its id), results.json,
report.html and, where a test set hides its answers, the file to hand in. The same command again goes on; several processes
share the questions. Answers from anywhere are scored alone: --predictions=FILE --benchmarks=NAME --root=DATA.

On the tasks of the checkpoint's own mixture, another split: --checkpoint=DIR --output=DIR [--tasks=vqa,rec] [--examples=200].
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

from absl import flags
from etils import epath

from sphinx_jax.checkpoint import store
from sphinx_jax.core import cli, errors
from sphinx_jax.evaluation import (
  answering,
  cases,
  held_out as tasks,
  predictions,
  scores,
  submissions,
)
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, open_benchmark
from sphinx_jax.generate import load
from sphinx_jax.parallel import hosts, mesh as meshes
from sphinx_jax.report import benchmarks as page

FLAGS = flags.FLAGS


def main() -> None:
  if FLAGS.benchmarks and FLAGS.tasks:
    raise errors.make('command line', '--benchmarks and --tasks', 'one of them', 'call twice')
  if not FLAGS.benchmarks:
    _need('tasks of a mixture', 'checkpoint', 'output')
    score_tasks()
  elif FLAGS.predictions:
    _need('--predictions', 'root')
    score_predictions()
  else:
    _need('--benchmarks', 'checkpoint', 'root', 'output')
    score_benchmarks()


def _need(mode: str, *names: str) -> None:
  missing = [f'--{name}' for name in names if not FLAGS[name].value]
  if missing:
    raise errors.make(
      'command line', f'{mode} without {" and ".join(missing)}', 'all of them', 'see --help'
    )


def score_tasks() -> None:
  """Answers held-out questions of the checkpoint's own tasks, with the picture and blind."""
  model, meta, config = load.load_run(FLAGS.checkpoint)
  if 'mixture' not in config:
    raise errors.make(
      f"checkpoint '{FLAGS.checkpoint}'",
      'converted weights, which carry no mixture of tasks',
      'a run of ours',
      'tune it on a mixture first, or score it on --benchmarks',
    )
  names = tasks.scored(config) if FLAGS.tasks is None else FLAGS.tasks
  held_out = tasks.open_split(config, names, FLAGS.split, FLAGS.data_dir)
  mean = tasks.mean_image(held_out, config.model.image_size)
  results = tasks.evaluate(
    model,
    held_out,
    FLAGS.examples,
    mean,
    FLAGS.output,
    f'{FLAGS.checkpoint} at step {meta["step"]}',
    FLAGS.rows,
  )
  print('\n'.join(tasks.line(name, result) for name, result in results.items()))


def score_benchmarks() -> None:
  """Answers benchmarks with a checkpoint, on all processes, and scores them."""
  asked = {
    name: FLAGS[name].value
    for name in ('checkpoint', 'benchmarks', 'root', 'output', 'limit', 'official')
  }
  with hosts.session({**asked, 'config': FLAGS.config.to_dict()}):
    opened = open_all(FLAGS.config, FLAGS.benchmarks, FLAGS.root, FLAGS.limit)
    place, run = epath.Path(FLAGS.output), identity(FLAGS.checkpoint)
    hosts.on_process_0(lambda: predictions.claim(place, run, opened))
    model = load.load_model(FLAGS.checkpoint, mesh=FLAGS.mesh)
    for benchmark in opened:
      answering.answer(model, benchmark, place, FLAGS.rows)
      hosts.on_process_0(
        functools.partial(record, benchmark, place / f'{benchmark.name}.jsonl', place, run)
      )


def score_predictions() -> None:
  """Scores one file of answers; what comes of it is written where --output is given."""
  if len(FLAGS.benchmarks) != 1:
    raise errors.make(
      '--predictions',
      f'{len(FLAGS.benchmarks)} benchmarks',
      'the one that the file answers',
      'call once for each',
    )
  (benchmark,) = open_all(FLAGS.config, FLAGS.benchmarks, FLAGS.root, FLAGS.limit)
  if not FLAGS.output:
    entries = predictions.entries(benchmark, FLAGS.predictions)
    print(scores.table({benchmark.name: scores.result(benchmark, entries, FLAGS.official)}))
    return
  run = f'file {store.whole_path(FLAGS.predictions)}'
  place = predictions.claim(FLAGS.output, run, [benchmark])
  record(benchmark, FLAGS.predictions, place, run)


def open_all(
  config: Mapping, names: Sequence[str], root: str, limit: int | None
) -> list[Benchmark]:
  """The benchmarks of these names, cut to their first questions where there is a limit."""
  unknown = [name for name in names if name not in config]
  if unknown:
    raise errors.unknown('benchmark', unknown[0], config)
  opened = [open_benchmark(name, config[name].to_dict(), root) for name in dict.fromkeys(names)]
  return [dataclasses.replace(one, questions=one.questions[:limit]) for one in opened]


def identity(checkpoint: str) -> str:
  """What tells a checkpoint from others in the folders of its answers."""
  step = f' at step {store.load_meta(checkpoint)["step"]}' if load.is_ours(checkpoint) else ''
  return f'{store.whole_path(checkpoint)}{step}'


def record(benchmark: Benchmark, file: predictions.Path, place: epath.Path, run: str) -> None:
  """Scores an answered benchmark, adds it to results.json and the page, and prints it."""
  entries = predictions.entries(benchmark, file)
  result = scores.result(benchmark, entries, FLAGS.official)
  earlier = place / 'results.json'
  results = (json.loads(earlier.read_text()) if earlier.exists() else {}) | {benchmark.name: result}
  tasks.write_json(earlier, results)
  print(scores.table({benchmark.name: result}), flush=True)
  if benchmark.hidden and FLAGS.limit is None:
    name, content = submissions.submission(
      benchmark.name, entries, [question.id for question in benchmark.questions]
    )
    (place / name).write_bytes(content)
    print(f'to hand in: {place / name}')
  cases.write(place, benchmark, entries, FLAGS.official)
  page.write(place, run, results, scores.rows(results))


if __name__ == '__main__':
  cli.define_config('configs/benchmarks.py')
  flags.DEFINE_string(
    'checkpoint',
    None,
    'Directory of a run or of a checkpoint; for benchmarks also an official folder.',
  )
  flags.DEFINE_string('output', None, 'Folder for predictions, scores and the page.')
  flags.DEFINE_integer('rows', 128, 'Most prompts decoded together.', lower_bound=1)
  flags.DEFINE_list('benchmarks', None, 'Names in --config.')
  flags.DEFINE_string(
    'root', None, 'Folder that the paths of --config are relative to (data/, annotations/).'
  )
  flags.DEFINE_integer('limit', None, 'Only the first questions of each benchmark.', lower_bound=1)
  flags.DEFINE_bool(
    'official',
    False,
    'Score as the official SPHINX script does, where it differs from the definition.',
  )
  flags.DEFINE_string(
    'predictions',
    None,
    'Score this file, JSON lines with id and answer, in place of asking a checkpoint.',
  )
  flags.DEFINE_enum(
    'mesh',
    None,
    list(meshes.PRESETS),
    "Layout over a process's devices; left out: the first one alone.",
  )
  flags.DEFINE_list(
    'tasks', None, 'Names in the mixture of the checkpoint; left out: all that have a metric.'
  )
  flags.DEFINE_string('split', 'test', 'Split of the data of --tasks.')
  flags.DEFINE_integer('examples', 200, 'Most questions a task.', lower_bound=1)
  flags.DEFINE_string(
    'data_dir', None, "Where the data of --tasks is; left out: as in the checkpoint's config."
  )
  cli.run(main)
