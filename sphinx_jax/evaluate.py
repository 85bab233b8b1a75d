"""Scores a checkpoint, or a file of answers.

Published benchmarks (configs/benchmarks.py), read from their dataset files:

    python -m sphinx_jax.evaluate --checkpoint=DIR --benchmarks=refcoco_val,mme --root=DATA \\
        --output=DIR [--limit=N]

DIR is a run, one of its checkpoints, or a folder of released weights; --adapter=DIR adds an adapter
of a run or of PEFT. --output gets NAME.jsonl (every answer with its id), results.json, report.html
and, if a test set hides its answers, the file to submit. The same command resumes after an
interruption. Several processes share the questions.

The same with the model of a server (docs/serving.md), in place of --checkpoint:

    python -m sphinx_jax.evaluate --server=http://127.0.0.1:8000/v1 --benchmarks=mme --root=DATA \\
        --output=DIR [--model=NAME]

A file of answers from any model:

    python -m sphinx_jax.evaluate --predictions=FILE --benchmarks=NAME --root=DATA [--output=DIR]

Held-out questions of the tasks of the checkpoint's own mixture:

    python -m sphinx_jax.evaluate --checkpoint=DIR --output=DIR [--tasks=vqa,rec] [--examples=200]

With --adapter the tasks are still those of --checkpoint. A run with adapters as --checkpoint has
tasks of its own.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from absl import flags
from etils import epath

from sphinx_jax.checkpoint import identity, store
from sphinx_jax.core import cli, errors, files, paths
from sphinx_jax.evaluation import (
  answering,
  by_model,
  cases,
  held_out,
  predictions,
  scores,
  submissions,
)
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, open_benchmark
from sphinx_jax.generate import load
from sphinx_jax.parallel import hosts, mesh as meshes
from sphinx_jax.report import benchmark_page

FLAGS = flags.FLAGS


def main() -> None:
  """Scores what the flags of the command line name."""
  if FLAGS.benchmarks and FLAGS.tasks:
    raise errors.SphinxError(
      'command line: --benchmarks and --tasks are both set, but one call takes only one of them; '
      'call the command once for each'
    )
  if FLAGS.server and (FLAGS.checkpoint or FLAGS.predictions or not FLAGS.benchmarks):
    raise errors.make(
      'command line',
      '--server with --checkpoint or --predictions, or without --benchmarks',
      '--server and --benchmarks',
      'ask the server for benchmarks alone',
    )
  for name in FLAGS.benchmarks or ():
    if name not in FLAGS.config:
      raise errors.unknown('benchmark', name, FLAGS.config)
  if not FLAGS.benchmarks:
    _require_flags('tasks of a mixture', 'checkpoint', 'output')
    score_tasks()
  elif FLAGS.predictions:
    _require_flags('--predictions', 'root')
    score_predictions()
  else:
    _require_flags('--benchmarks', *([] if FLAGS.server else ['checkpoint']), 'root', 'output')
    score_benchmarks()


def _require_flags(mode: str, *names: str) -> None:
  """Raises SphinxError if a flag that `mode` needs is not set."""
  missing = [f'--{name}' for name in names if not FLAGS[name].value]
  if missing:
    raise errors.make(
      'command line', f'{mode} without {" and ".join(missing)}', 'all of them', 'see --help'
    )


def score_tasks() -> None:
  """Answers and scores held-out questions of the checkpoint's own tasks."""
  with paths.locked(FLAGS.output, 'output'), files.writing(FLAGS.output, 'output'):
    _score_tasks()


def _score_tasks() -> None:
  model, meta, config = load.load_run(FLAGS.checkpoint, adapter=FLAGS.adapter)
  run = f'{FLAGS.checkpoint} at step {meta["step"]}'
  if FLAGS.adapter:
    run = identity.describe(FLAGS.checkpoint, FLAGS.adapter)
  if 'mixture' not in config:
    raise errors.make(
      f"checkpoint '{FLAGS.checkpoint}'",
      'converted weights, which have no mixture of tasks',
      'a training run',
      'train it on a mixture first, or score it on --benchmarks',
    )
  names = held_out.tasks_with_metric(config, FLAGS.tasks)
  sources = held_out.open_split(config, names, FLAGS.split, FLAGS.data_dir)
  results = held_out.evaluate(
    model,
    sources,
    FLAGS.examples,
    held_out.mean_image(sources, config.model.image_size, config.image.alpha),
    FLAGS.output,
    run=run,
    weights=identity.of_weights(FLAGS.checkpoint, FLAGS.adapter),
    batch_size=FLAGS.batch_size,
  )
  for name, result in results.items():
    print(held_out.format_result(name, result))


def score_benchmarks() -> None:
  """Answers benchmarks with a checkpoint or a server, on all processes, and scores them."""
  names = ('checkpoint', 'adapter', 'server', 'model', 'benchmarks', 'root', 'output', 'limit')
  settings = {name: FLAGS[name].value for name in (*names, 'official_scoring')}
  with (
    hosts.session({**settings, 'config': FLAGS.config.to_dict()}),
    hosts.exclusive(FLAGS.output, 'output'),
    files.writing(FLAGS.output, 'output'),
  ):
    if FLAGS.server:
      answerer = open_server()
      style, run, weights = answerer.style, f'server of {answerer.name}', answerer.fingerprint
    else:
      style = load.template(FLAGS.checkpoint).style
      run = identity.describe(FLAGS.checkpoint, FLAGS.adapter)
      weights = identity.of_weights(FLAGS.checkpoint, FLAGS.adapter)
    benchmarks = open_benchmarks(FLAGS.config, FLAGS.benchmarks, FLAGS.root, FLAGS.limit, style)
    output = epath.Path(FLAGS.output)
    hosts.on_process_0(lambda: predictions.claim(output, run, benchmarks, weights))
    if not FLAGS.server:
      model = load.load_model(FLAGS.checkpoint, mesh=FLAGS.mesh, adapter=FLAGS.adapter)
      answerer = by_model.ByModel(model, FLAGS.batch_size)
    for benchmark in benchmarks:
      answering.answer(answerer, benchmark, output)
      file = output / f'{benchmark.name}.jsonl'
      hosts.on_process_0(functools.partial(record_scores, benchmark, file, output, run))


def open_server() -> answering.Answerer:
  """Returns the server of --server, as `by_server.ByServer`.

  Raises:
    SphinxError: the client is not installed, or the server does not answer.
  """
  try:
    from sphinx_jax.evaluation import by_server
  except ModuleNotFoundError as error:
    raise errors.make(
      '--server', f'no package {error.name}', "the extra 'serve'", "pip install -e '.[serve]'"
    ) from error
  return by_server.ByServer(FLAGS.server, FLAGS.model)


def score_predictions() -> None:
  """Scores one file of answers, and writes the scores if --output is set."""
  if len(FLAGS.benchmarks) != 1:
    raise errors.make(
      '--predictions',
      f'{len(FLAGS.benchmarks)} benchmarks',
      'the one benchmark that the file answers',
      'call the command once for each file',
    )
  (benchmark,) = open_benchmarks(FLAGS.config, FLAGS.benchmarks, FLAGS.root, FLAGS.limit)
  if not FLAGS.output:
    entries = predictions.entries(benchmark, FLAGS.predictions)
    result = scores.result(benchmark, entries, FLAGS.official_scoring)
    print(scores.table({benchmark.name: result}))
    return
  run = f'file {store.absolute_path(FLAGS.predictions)}'
  with paths.locked(FLAGS.output, 'output'), files.writing(FLAGS.output, 'output'):
    output = predictions.claim(FLAGS.output, run, [benchmark])
    record_scores(benchmark, FLAGS.predictions, output, run)


def open_benchmarks(
  config: Mapping, names: Sequence[str], root: str, limit: int | None, style: str = ''
) -> list[Benchmark]:
  """Opens benchmarks by name.

  Args:
    config: {name: settings}, as in configs/benchmarks.py.
    names: keys of `config`. A repeated one is opened once.
    root: directory to which the paths in `config` are relative.
    limit: number of questions to keep of each, or None for all.
    style: dialog template of the model that is asked, which may have its own prompts.

  Raises:
    SphinxError: files are missing.
  """
  benchmarks = []
  for name in dict.fromkeys(names):
    benchmark = open_benchmark(name, config[name].to_dict(), root, style)
    benchmarks.append(dataclasses.replace(benchmark, questions=benchmark.questions[:limit]))
  return benchmarks


def record_scores(
  benchmark: Benchmark, file: predictions.Path, output: epath.Path, run: str
) -> None:
  """Scores an answered benchmark, prints the scores, and adds them to results.json and the report.

  Args:
    benchmark: the benchmark.
    file: predictions file with an answer to each of its questions.
    output: directory of results.json, the report and, for a hidden test set, the file to submit.
    run: text that identifies the model in the report.
  """
  entries = predictions.entries(benchmark, file)
  result = scores.result(benchmark, entries, FLAGS.official_scoring)
  results_file = output / 'results.json'
  earlier = files.read_json(results_file) if results_file.exists() else {}
  results = earlier | {benchmark.name: result}
  files.write_json(results_file, results)
  print(scores.table({benchmark.name: result}), flush=True)
  if benchmark.hidden and FLAGS.limit is None:
    ids = [question.id for question in benchmark.questions]
    name, content = submissions.submission(benchmark.name, entries, ids)
    files.write_atomic(output / name, content)
    print(f'file to submit: {output / name}')
  cases.write(output, benchmark, entries, FLAGS.official_scoring)
  benchmark_page.write(output, run, results, scores.rows(results))


if __name__ == '__main__':
  cli.define_config('benchmarks')
  cli.define_path(
    'checkpoint',
    None,
    'Directory of a run or of one of its checkpoints; for --benchmarks also a folder of released '
    'weights or its name in the local hub cache.',
  )
  cli.define_path('adapter', None, 'LoRA adapter of the model: of a run, or a folder of PEFT.')
  flags.DEFINE_string(
    'server',
    None,
    'Address of a server with the API of OpenAI, in place of --checkpoint. OPENAI_API_KEY has its '
    'key.',
  )
  flags.DEFINE_string('model', '', 'Model of --server; by default its only one.')
  cli.define_path('output', None, 'Directory for predictions, scores and the report.')
  flags.DEFINE_integer('batch_size', 128, 'Most prompts decoded together.', lower_bound=1)
  flags.DEFINE_list('benchmarks', None, 'Names of benchmarks in --config.')
  cli.define_path(
    'root', None, 'Directory that the paths in --config are relative to (data/, annotations/).'
  )
  flags.DEFINE_integer('limit', None, 'Only the first questions of each benchmark.', lower_bound=1)
  flags.DEFINE_bool(
    'official_scoring',
    False,
    'Score like the official SPHINX script where it differs from the definition of a benchmark.',
  )
  cli.define_path(
    'predictions',
    None,
    'Score this file, JSON lines with id and answer, instead of answering with a checkpoint.',
  )
  flags.DEFINE_enum(
    'mesh',
    None,
    list(meshes.PRESETS),
    "Mesh over the devices of a process. By default only the process's first device is used.",
  )
  flags.DEFINE_list(
    'tasks', None, "Names of tasks in the checkpoint's mixture. Default: all that have a metric."
  )
  flags.DEFINE_string(
    'split', None, "Split of the data of --tasks. None: the run's validation sets, or else 'test'."
  )
  flags.DEFINE_integer('examples', 200, 'Most questions per task.', lower_bound=1)
  cli.define_path(
    'data_dir', None, "Directory of the data of --tasks. Default: that in the checkpoint's config."
  )
  cli.run(main)
