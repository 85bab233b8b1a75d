"""Best-effort reader of what the compiler writes about a program: collectives and large buffers.

Both come from text that is meant for people, in the form that libtpu 0.0.42.1 writes. Another
version may write it differently. So nothing here raises: what cannot be read is left out, and
`Details.problems` has the reason.
"""

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
_ITEM_BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  's16': 2,
  'u16': 2,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
}
_LARGEST_BUFFERS = 12


@dataclasses.dataclass(frozen=True)
class Buffer:
  """A piece of the working memory.

  Attributes:
    name: the instruction that fills it.
    shape: its dtype and shape as HLO text.
    nbytes: bytes on one device.
    source: its place in the program ('jit(step)/jvp(Sphinx)/llm/...'), or ''.
  """

  name: str
  shape: str
  nbytes: int
  source: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """The collectives of one kind in one loop, or outside of all loops.

  Attributes:
    kind: one of KINDS.
    loop: the loop by the name of its layer ('llm forward'), or 'once'.
    trips: trips of the loop (its layers); 1 outside.
    count: collectives in one trip.
    nbytes: bytes of the whole arrays (after a gather, before a scatter) in one trip, on one device.
  """

  kind: str
  loop: str
  trips: int
  count: int
  nbytes: int


@dataclasses.dataclass(frozen=True)
class Details:
  """Everything that could be read.

  Attributes:
    buffers: the largest pieces of the working memory, which do not overlap.
    collectives: largest number of bytes per step first.
    problems: name of what is missing -> reason.
  """

  buffers: tuple[Buffer, ...] = ()
  collectives: tuple[Collective, ...] = ()
  problems: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(compiled: Any, directory: pathlib.Path) -> Details:
  """Reads buffers and collectives of a compiled program. Never raises.

  Args:
    compiled: jax.stages.Compiled.
    directory: the directory that `xla_dump_to` named during its compilation.
  """
  problems = {}
  text, found, buffers = '', (), ()
  try:
    text = compiled.as_text()
    found = tuple(collectives(text))
  except Exception as error:  # Any surprise in text whose format is not documented.
    problems['collectives'] = _describe(error)
  try:
    buffers = largest_buffers(directory, op_names(text))
  except Exception as error:
    problems['largest buffers'] = _describe(error)
  return Details(buffers, found, problems)


def _describe(error: Exception) -> str:
  message = (str(error).splitlines() or [''])[0][:200]
  if isinstance(error, _UnreadableError):
    return message
  return f'the compiler text has another format ({type(error).__name__}: {message})'


class _UnreadableError(Exception):
  """The text or the dump lacks a part that every program has."""


# ---------------------------------------------------------------------------------------------
# Collectives, from the HLO text of a compiled module.

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_CALLS = re.compile(
  r'(?:calls|body|to_apply|called_computations|branch_computations'
  r'|true_computation|false_computation)='
  r'(?:\{([^}]*)\}|%?([\w.\-]+))'
)
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_TRIP_COUNT = re.compile(r'known_trip_count\D*(\d+)')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_BODY = re.compile(r'body=%?([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_NOT_A_LAYER = re.compile(
  r'(jit|jvp|transpose|while|step|body|Sphinx[.\w]*|encoders[.\w]*'
  r'|checkpoint|closed_call|rematted_computation)$'
)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """One line `name = shape opcode(rest`."""

  name: str
  shape: str
  opcode: str
  rest: str


def collectives(text: str) -> list[Collective]:
  """Returns all collectives of a compiled module, largest number of bytes per step first.

  Args:
    text: `jax.stages.Compiled.as_text()`.

  Raises:
    Exception: of any kind, if the text has another format.
  """
  computations = _computations(text)
  if not computations.get('ENTRY'):
    raise _UnreadableError('the HLO text has no ENTRY computation that can be read')
  counts: collections.Counter[tuple[str, str, int]] = collections.Counter()
  nbytes: collections.Counter[tuple[str, str, int]] = collections.Counter()
  for key, size in _walk(computations):
    counts[key] += 1
    nbytes[key] += size
  result = [Collective(*key, count, nbytes[key]) for key, count in counts.items()]
  return sorted(result, key=lambda item: -item.trips * item.nbytes)


def _computations(text: str) -> dict[str, list[_Instruction]]:
  """Splits a module into its computations; the entry is also under 'ENTRY'."""
  computations: dict[str, list[_Instruction]] = {}
  current: list[_Instruction] | None = None
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      current = computations[header[1]] = []
      if line.startswith('ENTRY'):
        computations['ENTRY'] = current
      continue
    instruction = _INSTRUCTION.match(line)
    if instruction and current is not None:
      current.append(_Instruction(*instruction.groups()))
  return computations


def _walk(
  computations: Mapping[str, list[_Instruction]],
) -> Iterator[tuple[tuple[str, str, int], int]]:
  """Yields ((kind, loop, trips), bytes) of every collective that the entry reaches."""
  stack = [('ENTRY', 'once', 1)]
  while stack:
    name, loop, trips = stack.pop()
    instructions = computations.get(name, [])
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    for instruction in instructions:
      kind = instruction.opcode.removesuffix('-start')
      if kind in KINDS:
        # A TPU scatters with a fusion of this name, which keeps the device's own part only.
        if name.startswith('all-reduce-scatter'):
          kind = 'reduce-scatter'
        yield (kind, loop, trips), _whole_bytes(instruction, kind, shapes)

      inner_loop, inner_trips = loop, trips
      if instruction.opcode == 'while':
        inner_loop = _loop_name(instruction.rest)
        inner_trips = trips * _trip_count(instruction.rest, computations)
      for called in _called(instruction.rest):
        stack.append((called, inner_loop, inner_trips))


def _called(rest: str) -> Iterator[str]:
  """Yields the computations that an instruction calls: `calls=%name` or `calls={%a, %b}`."""
  for several, single in _CALLS.findall(rest):
    names = re.split(r',\s*', several) if several else [single]
    for name in names:
      yield name.lstrip('%')


def _whole_bytes(instruction: _Instruction, kind: str, shapes: Mapping[str, str]) -> int:
  """Returns the bytes of the whole array: the result of a gather, the operand of a scatter."""
  operands = sum(_nbytes(shapes.get(name, '')) for name in _operands(instruction))
  result = _nbytes(instruction.shape)
  if instruction.opcode.endswith('-start'):  # Its result repeats the operands.
    result = max(result - operands, 0)
  if kind in ('all-gather', 'reduce-scatter'):
    return max(operands, result)
  return operands or result


def _nbytes(shape: str) -> int:
  """Returns the bytes of an HLO shape or tuple of shapes."""
  total = 0
  for dtype, sizes in _SHAPE.findall(shape):
    total += _ITEM_BYTES.get(dtype, 0) * math.prod(int(size) for size in sizes.split(',') if size)
  return total


def _trip_count(rest: str, computations: Mapping[str, list[_Instruction]]) -> int:
  """Returns the trips of a loop from its annotation, or from its condition and its step."""
  annotated = _TRIP_COUNT.search(rest)
  if annotated:
    return int(annotated[1])
  condition, body = _CONDITION.search(rest), _BODY.search(rest)
  if not condition or not body:
    return 1
  condition = computations.get(condition[1], [])
  limit = max(_constants(condition).values(), default=1)
  return max(limit // _step(condition, computations.get(body[1], [])), 1)


def _constants(instructions: list[_Instruction]) -> dict[str, int]:
  """Returns name -> value of the integer constants of a computation."""
  values = (
    (instruction.name, re.match(r'(\d+)\)', instruction.rest))
    for instruction in instructions
    if instruction.opcode == 'constant'
  )
  return {name: int(value[1]) for name, value in values if value}


def _step(condition: list[_Instruction], body: list[_Instruction]) -> int:
  """Returns what an unrolled loop adds to its counter in a trip, 1 if that cannot be read.

  The condition compares an element of the loop's tuple; the last instruction of the body makes the
  next tuple.
  """
  indices = [re.search(r'index=(\d+)', instruction.rest) for instruction in condition]
  index = next((int(found[1]) for found in indices if found), None)
  names = _operands(body[-1]) if body and body[-1].opcode == 'tuple' else []
  if index is None or index >= len(names):
    return 1
  constants = _constants(body)
  for instruction in body:
    if instruction.name == names[index] and instruction.opcode == 'add':
      return max((constants.get(name, 1) for name in _operands(instruction)), default=1)
  return 1


def _operands(instruction: _Instruction) -> list[str]:
  return re.findall(r'%([\w.\-]+)', instruction.rest.split(')')[0])


def _loop_name(rest: str) -> str:
  """Returns the layer names in the path of a loop, and which pass it belongs to."""
  path = _OP_NAME.search(rest)
  if not path:
    return 'loop'
  names = [name for name in re.split(r'[/()]', path[1]) if name and not _NOT_A_LAYER.match(name)]
  direction = 'backward' if 'transpose' in path[1] else 'forward'
  return f'{"/".join(names) or "loop"} {direction}'


def op_names(text: str) -> dict[str, str]:
  """Returns instruction name -> its place in the program, from the HLO text."""
  pattern = r'^\s+(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]+)"'
  return dict(re.findall(pattern, text, re.MULTILINE))


# ---------------------------------------------------------------------------------------------
# Buffers, from the dumped buffer assignment.

_VALUE = re.compile(
  r' value: <\d+ (\S+?)(?:\{[\d,]*\})?(?: \(phi\))? @0> \(size=(\d+),offset=(\d+)\): (\S+)'
)


def largest_buffers(directory: pathlib.Path, sources: Mapping[str, str]) -> tuple[Buffer, ...]:
  """Returns the largest values of the working memory that do not overlap, largest first.

  Values share memory over time. Of those that overlap only the largest is listed.

  Args:
    directory: of the dump.
    sources: see `op_names`.

  Raises:
    Exception: of any kind, if the dump is missing or has another format.
  """
  dumps = list(directory.glob('*jit_step*buffer-assignment.txt'))
  if not dumps:
    raise _UnreadableError('the compiler dumped no buffer assignment')
  values = []
  for dump in dumps:
    for allocation in dump.read_text().split('\nallocation ')[1:]:
      header, *lines = allocation.splitlines()
      if 'preallocated-temp' in header and 'color' not in header:
        matches = (_VALUE.match(line) for line in lines)
        values += [match.groups() for match in matches if match]
  if not values:
    raise _UnreadableError('the dumped buffer assignment lists no temporaries that can be read')

  taken: list[tuple[int, int]] = []
  buffers: list[Buffer] = []
  for name, size, offset, shape in sorted(values, key=lambda value: -int(value[1])):
    start, end = int(offset), int(offset) + int(size)
    overlaps = any(start < high and end > low for low, high in taken)
    if not overlaps and len(buffers) < _LARGEST_BUFFERS:
      taken.append((start, end))
      buffers.append(Buffer(name, shape.partition('{')[0], int(size), sources.get(name, '')))
  return tuple(buffers)


# ---------------------------------------------------------------------------------------------
# The error of a program that is too large.

_SHORTAGE = re.compile(r'Used ([\d.]+)([GM]) of|\(([\d.]+)([GM])\) exceeds')
_UNITS = {'G': 2**30, 'M': 2**20}


def requested_bytes(message: str) -> int:
  """Returns the bytes that an out-of-memory message names, or 0 if it cannot be read."""
  match = _SHORTAGE.search(message)
  if not match:
    return 0
  number, unit = (group for group in match.groups() if group)
  return int(float(number) * _UNITS[unit])
