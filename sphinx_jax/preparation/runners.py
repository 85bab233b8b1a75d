"""Runs the writing of shards: in processes of this machine, or with Apache Beam on any number."""

import concurrent.futures
import functools
import multiprocessing
import signal
import time
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized

from sphinx_jax.core import errors
from sphinx_jax.core.processes import end_with_parent
from sphinx_jax.core.progress import Progress
from sphinx_jax.preparation.plan import Build, Shard
from sphinx_jax.preparation.write import read_report, write_shard

_POLL_SECONDS = 0.5  # Between updates of the progress bar.


def run_local(build: Build, shards: Sequence[Shard], processes: int) -> None:
  """Writes the shards that are missing, with a progress bar of their items.

  The written bytes do not depend on the number of processes.

  Raises:
    SphinxError: a shard cannot be written, or a process was killed.
  """
  reports = [read_report(build, shard) for shard in shards]
  missing = [shard for shard, report in zip(shards, reports) if report is None]
  done = sum(report['items'] for report in reports if report)
  total = None  # Unknown if a shard is a file whose items are counted when it is opened.
  if shards and all(shard.end is not None for shard in shards):
    total = shards[-1].end
  with Progress(total=total, what=f'{build.source} {build.split}', unit='items', start=done) as bar:
    if processes > 1 and len(missing) > 1:
      _run_processes(build, missing, min(processes, len(missing)), bar)
      return
    for shard in missing:
      note = f'shard {shard.number + 1}/{shard.count}'
      write_shard(build, shard, functools.partial(bar.update, note=note))


def _run_processes(build: Build, shards: Sequence[Shard], processes: int, bar: Progress) -> None:
  # Forking after TensorFlow started threads may hang.
  context = multiprocessing.get_context('spawn')
  others = multiprocessing.active_children()
  finished_items, shown = context.Value('q', 0), 0
  with concurrent.futures.ProcessPoolExecutor(
    processes, context, _start_worker, (finished_items,)
  ) as pool:
    waiting = {pool.submit(_write_in_worker, build, shard) for shard in shards}
    try:
      while waiting:
        done, waiting = concurrent.futures.wait(
          waiting, _POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION
        )
        for future in done:
          future.result()
        items = finished_items.value
        bar.update(items - shown, note=f'{len(shards) - len(waiting)}/{len(shards)} shards')
        shown = items
    except BaseException as error:
      pool.shutdown(wait=False, cancel_futures=True)
      # Otherwise the end of this program would wait for the shards in work.
      for process in set(multiprocessing.active_children()).difference(others):
        process.terminate()
      if isinstance(error, concurrent.futures.process.BrokenProcessPool):
        raise errors.make(
          f"build in '{build.output}'",
          'a worker process that was killed (by the system, if memory ran out)',
          'all of them to the end',
          'run the same command again, with fewer --processes',
        ) from error
      raise


def _start_worker(finished_items: Synchronized) -> None:
  global _finished_items
  _finished_items = finished_items
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers.
  end_with_parent()


def _write_in_worker(build: Build, shard: Shard) -> None:
  write_shard(build, shard, _count_items)


def _count_items(items: int) -> None:
  with _finished_items.get_lock():
    _finished_items.value += items


def run_beam(build: Build, shards: Sequence[Shard], runner: str, options: Sequence[str]) -> None:
  """Writes the shards that are missing with a Beam pipeline.

  Args:
    build: the build.
    shards: all of its shards.
    runner: DirectRunner, DataflowRunner, FlinkRunner, ...
    options: Beam's own options, 'project=x' for --project=x. Workers on other machines need this
      package and both folders; see sdk_container_image and setup_file in Beam's documentation.

  Raises:
    SphinxError: Apache Beam is not installed.
  """
  try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise errors.make(
      '--beam',
      f'an environment without Apache Beam ({error})',
      'the package apache-beam',
      'install it in an environment of its own, see constraints_beam.txt, or leave out --beam',
    ) from error
  flags = [f'--runner={runner}', *(f'--{option}' for option in options)]
  began = time.monotonic()
  what = f'{build.source} {build.split} on {runner}'
  with Progress(total=len(shards), what=what, unit='shards') as bar:
    with apache_beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
      write = apache_beam.Map(functools.partial(write_shard, build))
      pipeline | 'shards' >> apache_beam.Create(list(shards)) | apache_beam.Reshuffle() | write
    bar.update(len(shards), note=f'{time.monotonic() - began:.0f} s')
