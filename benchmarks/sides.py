"""Two implementations of the same work, each in a process of its own, timed in turns."""

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

THREADS = 2  # Of each side.


class Measured(NamedTuple):
  """What one side did.

  Attributes:
    result: what its maker returned beside the work.
    seconds: of every timed run, a list for each argument.
    gib: peak memory of its process.
  """

  result: Any
  seconds: list[list[float]]
  gib: float


def _serve(make: Callable, arguments: Sequence, pipe: Connection) -> None:
  """The process of one side. It runs the work with every argument that it gets; None ends it."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
  run, result = make(*arguments)
  pipe.send(result)
  while (argument := pipe.recv()) is not None:
    began = time.perf_counter()
    run(argument)
    pipe.send(time.perf_counter() - began)
  pipe.send(_peak_gib())


def _peak_gib() -> float:
  """Peak memory of this process. ru_maxrss would start at that of the parent process."""
  return int(re.search(r'VmHWM:\s+(\d+) kB', open('/proc/self/status').read())[1]) / 2**20


def measure(
  makers: Sequence[Callable],
  arguments: Sequence,
  repeats: int,
  works: Sequence = (1,),
) -> list[Measured]:
  """Times all sides in turns, after one run of each work to warm up.

  Args:
    makers: functions at the top level of a module. Each gets the arguments in its own process and
      returns (a function that does a work, something to return from here).
    arguments: can be pickled.
    repeats: timed runs of each work.
    works: arguments of the function.

  Returns:
    One entry a maker.
  """
  # As launch/environment.sh: glibc reads them when a process starts.
  for name in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'):
    os.environ.setdefault(name, str(1 << 32))
  context = multiprocessing.get_context('spawn')
  pipes, processes = [], []
  for make in makers:
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(make, arguments, other), daemon=True)
    process.start()
    other.close()  # Now `pipe.recv` raises when the process dies.
    pipes.append(pipe)
    processes.append(process)

  def ask(pipe: Connection, argument: Any) -> float:
    pipe.send(argument)
    return pipe.recv()

  results = [pipe.recv() for pipe in pipes]
  seconds = [[[] for _ in works] for _ in pipes]
  for turn in range(1 + repeats):
    for number, work in enumerate(works):
      for side, pipe in enumerate(pipes):
        taken = ask(pipe, work)
        if turn:
          seconds[side][number].append(taken)
  peaks = [ask(pipe, None) for pipe in pipes]
  for process in processes:
    process.join()
  return [Measured(*side) for side in zip(results, seconds, peaks)]
