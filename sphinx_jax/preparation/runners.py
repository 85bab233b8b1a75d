"""Who writes the shards of a build: processes of this machine, or Apache Beam on any number of machines."""

import concurrent.futures
import functools
import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.miniworld import workers
from sphinx_jax.preparation import write as building
from sphinx_jax.preparation.write import Build, Shard

_LOOK = 0.5  # seconds between looks at how far the processes are


def local(build: Build, shards: Sequence[Shard], processes: int) -> None:
  """Writes the shards that are not there yet, with a bar of their items; the number of processes changes nothing in them."""
  reports = [building.report_of(build, shard) for shard in shards]
  wanted = [shard for shard, report in zip(shards, reports) if report is None]
  known = all(shard.end is not None for shard in shards)
  done = sum(report['items'] for report in reports if report)
  total = shards[-1].end if known and shards else None
  with Progress(total=total, what=f'{build.source} {build.split}', unit='items', start=done) as bar:
    if processes == 1 or len(wanted) < 2:
      for shard in wanted:
        building.write(
          build,
          shard,
          functools.partial(bar.update, note=f'shard {shard.number + 1}/{shard.count}'),
        )
    else:
      _spread(build, wanted, min(processes, len(wanted)), bar)


def _spread(build: Build, wanted: Sequence[Shard], processes: int, bar: Progress) -> None:
  context = multiprocessing.get_context(
    'spawn'
  )  # Forking after TensorFlow started threads may hang.
  counter, seen = context.Value('q', 0), 0
  with concurrent.futures.ProcessPoolExecutor(processes, context, _begin, (counter,)) as pool:
    waiting = {pool.submit(_write, build, shard) for shard in wanted}
    try:
      while waiting:
        finished, waiting = concurrent.futures.wait(
          waiting, _LOOK, concurrent.futures.FIRST_EXCEPTION
        )
        for future in finished:
          future.result()
        now = counter.value
        bar.update(now - seen, note=f'{len(wanted) - len(waiting)}/{len(wanted)} shards')
        seen = now
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _begin(counter: Any) -> None:
  global _counter
  _counter, _ = counter, workers.end_with_parent()


def _write(build: Build, shard: Shard) -> None:
  building.write(build, shard, _advance)


def _advance(items: int) -> None:
  with _counter.get_lock():
    _counter.value += items


def beam(build: Build, shards: Sequence[Shard], runner: str, options: Sequence[str]) -> None:
  """Writes the shards as a Beam pipeline; what an interrupted one left is gone on with here too.

  Args:
    runner: DirectRunner, DataflowRunner, FlinkRunner, ...
    options: of Beam, 'project=x' for --project=x. Workers elsewhere need this package and both folders: see Beam on
      sdk_container_image, setup_file.

  Raises:
    SphinxError: Apache Beam is not installed, or does not know an option.
  """
  try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise errors.make(
      '--beam',
      f'no Apache Beam here ({error})',
      'the package apache-beam',
      'install it in an environment of its own, as constraints_beam.txt says; or leave out --beam',
    ) from error
  flags = [f'--runner={runner}', *(f'--{option}' for option in options)]
  began = time.monotonic()
  with Progress(
    total=len(shards), what=f'{build.source} {build.split} on {runner}', unit='shards'
  ) as bar:
    with apache_beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
      work = apache_beam.Map(functools.partial(building.write, build))
      pipeline | 'shards' >> apache_beam.Create(list(shards)) | apache_beam.Reshuffle() | work
    bar.update(len(shards), note=f'{time.monotonic() - began:.0f} s')
