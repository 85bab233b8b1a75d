"""What the compiler says of an update for an absent slice: bytes on a device, the largest buffers, the collectives."""

import dataclasses
import pathlib
import re
import tempfile
import time
from typing import Any

import jax

from sphinx_jax.planning import hlo

_VALUE = re.compile(
  r' value: <\d+ (\S+?)(?:\{[\d,]*\})?(?: \(phi\))? @0> \(size=(\d+),offset=(\d+)\): (\S+)'
)
_SHORTAGE = re.compile(r'Used ([\d.]+)([GM]) of|\(([\d.]+)([GM])\) exceeds')


@dataclasses.dataclass(frozen=True)
class Buffer:
  """A piece of the working memory: name of the instruction that fills it, its shape, bytes, and where it comes from."""

  name: str
  shape: str
  nbytes: int
  source: str


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiler's answer.

  Attributes:
    arguments: bytes on a device of the state and a batch, as they are laid out and padded there.
    temporaries: bytes of working memory: activations, gradients, gathered weights.
    code: bytes of the program itself, which lies in HBM too.
    total: bytes in use at once.
    buffers: the largest pieces of the working memory, which do not overlap.
    collectives: see hlo.py.
    seconds: that compiling took.
    fits: False: the compiler refused; `total` is then what it asked for, as far as it says, and the rest is empty.
  """

  arguments: int
  temporaries: int
  code: int
  total: int
  buffers: tuple[Buffer, ...]
  collectives: tuple[hlo.Collective, ...]
  seconds: float
  fits: bool


def compile_update(lowered: jax.stages.Lowered, details: bool = True) -> Compiled:
  """Compiles for the devices that the program was lowered for; nothing runs.

  Args:
    lowered: `Program.lower()`.
    details: buffers and collectives too.
  """
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as directory:
    options = {'xla_dump_to': directory, 'xla_dump_hlo_as_text': True} if details else None
    try:
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      return Compiled(0, 0, 0, _asked_for(str(error)), (), (), time.monotonic() - began, False)
    seconds = time.monotonic() - began
    text = compiled.as_text() if details else ''
    buffers = _largest(pathlib.Path(directory), hlo.op_names(text)) if details else ()
  memory: Any = compiled.memory_analysis()
  held, made = (
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes - memory.alias_size_in_bytes,
  )
  total = held + made + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  return Compiled(
    held,
    memory.temp_size_in_bytes,
    memory.generated_code_size_in_bytes,
    total,
    buffers,
    tuple(hlo.collectives(text)),
    seconds,
    True,
  )


def _asked_for(message: str) -> int:
  found = _SHORTAGE.search(message)
  if not found:
    return 0
  number, unit = (part for part in found.groups() if part)
  return int(float(number) * {'G': 2**30, 'M': 2**20}[unit])


def _largest(
  directory: pathlib.Path, sources: dict[str, str], number: int = 12
) -> tuple[Buffer, ...]:
  """From the dumped buffer assignment: values share memory over time, so one is listed for each stretch of it."""
  values = []
  for file in directory.glob('*jit_step*buffer-assignment.txt'):
    for allocation in file.read_text().split('\nallocation ')[1:]:
      head, *lines = allocation.splitlines()
      if 'preallocated-temp' in head and 'color' not in head:
        values += [found.groups() for line in lines if (found := _VALUE.match(line))]
  taken: list[tuple[int, int]] = []
  buffers = []
  for name, size, offset, shape in sorted(values, key=lambda value: -int(value[1])):
    start, end = int(offset), int(offset) + int(size)
    if len(buffers) < number and all(end <= low or start >= high for low, high in taken):
      taken.append((start, end))
      buffers.append(Buffer(name, shape.partition('{')[0], int(size), sources.get(name, '')))
  return tuple(buffers)
