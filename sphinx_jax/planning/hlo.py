"""The compiler's own text of an update: which collectives it runs, how often and over how many bytes."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
_BYTES = {
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
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_CALLS = re.compile(
  r'(?:calls|body|to_apply|called_computations|branch_computations|true_computation|false_computation)='
  r'(?:\{([^}]*)\}|%?([\w.\-]+))'
)
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_TRIPS = re.compile(r'known_trip_count\D*(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind in one loop (or outside of all).

  Attributes:
    kind: one of KINDS.
    where: the loop by the name of its layer ('llm forward'), or 'once'.
    trips: of the loop, its layers; 1 outside.
    count: collectives in one trip.
    nbytes: of the whole arrays (gathered, or before they are scattered) in one trip, on one device.
  """

  kind: str
  where: str
  trips: int
  count: int
  nbytes: int


def collectives(text: str) -> list[Collective]:
  """All collectives of a compiled module (`Compiled.as_text()`), most bytes a step first."""
  found: dict[tuple, list[int]] = collections.defaultdict(lambda: [0, 0])
  for (kind, where, trips), nbytes in _walk(_computations(text)):
    entry = found[kind, where, trips]
    entry[0] += 1
    entry[1] += nbytes
  result = [Collective(*key, *value) for key, value in found.items()]
  return sorted(result, key=lambda one: -one.trips * one.nbytes)


def op_names(text: str) -> dict[str, str]:
  """Name of an instruction -> where in the program it comes from ('jit(step)/jvp(Sphinx)/llm/...')."""
  return dict(re.findall(r'^\s+(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]+)"', text, re.MULTILINE))


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  rest: str


def _computations(text: str) -> dict[str, list[_Instruction]]:
  parts: dict[str, list[_Instruction]] = {}
  name = ''
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      name = head[1]
      parts[name] = []
      if line.startswith('ENTRY'):
        parts['ENTRY'] = parts[name]
    elif name and (found := _INSTRUCTION.match(line)):
      parts[name].append(_Instruction(*found.groups()))
  return parts


def _walk(parts: dict[str, list[_Instruction]]) -> Iterator[tuple[tuple[str, str, int], int]]:
  """(kind, loop, trips), bytes of every collective, from the entry through all that it calls."""
  stack = [('ENTRY', 'once', 1)]
  while stack:
    name, where, trips = stack.pop()
    shapes = {instruction.name: instruction.shape for instruction in parts.get(name, ())}
    for instruction in parts.get(name, ()):
      kind = instruction.opcode.removesuffix('-start')
      if kind in KINDS:
        if name.startswith(
          'all-reduce-scatter'
        ):  # A fusion that keeps a device's part alone, as TPUs scatter.
          kind = 'reduce-scatter'
        yield (kind, where, trips), _whole(instruction, kind, shapes)
      loop = instruction.opcode == 'while'
      for several, one in _CALLS.findall(instruction.rest):
        for called in re.split(r',\s*', several) if several else [one]:
          inside = (
            (_loop_name(instruction.rest), trips * _trip_count(instruction.rest, parts))
            if loop
            else (where, trips)
          )
          stack.append((called.lstrip('%'), *inside))


def _whole(instruction: _Instruction, kind: str, shapes: dict[str, str]) -> int:
  """Bytes of the whole array: the larger side, which is the result of a gather and the operand of a scatter."""
  operands = re.findall(r'%([\w.\-]+)', instruction.rest.split(')')[0])
  given = sum(_nbytes(shapes.get(operand, '')) for operand in operands)
  result = _nbytes(instruction.shape)
  if instruction.opcode.endswith('-start'):  # Its result repeats the operands beside what is made.
    result = max(result - given, 0)
  return max(given, result) if kind in ('all-gather', 'reduce-scatter') else given or result


def _nbytes(shape: str) -> int:
  return sum(
    _BYTES.get(dtype, 0) * math.prod(int(size) for size in sizes.split(',') if size)
    for dtype, sizes in _SHAPE.findall(shape)
  )


def _trip_count(rest: str, parts: dict[str, list[_Instruction]]) -> int:
  """From the loop's own note, or the constant that its condition compares with."""
  if known := _TRIPS.search(rest):
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', rest)
  constants = [
    int(found[1])
    for instruction in parts.get(condition[1] if condition else '', ())
    if instruction.opcode == 'constant' and (found := re.match(r'(\d+)\)', instruction.rest))
  ]
  return max(constants, default=1)


def _loop_name(rest: str) -> str:
  path = re.search(r'op_name="([^"]*)"', rest)
  if not path:
    return 'loop'
  names = [
    name
    for name in re.split(r'[/()]', path[1])
    if name
    and not re.match(
      r'(jit|jvp|transpose|while|step|body|'
      r'Sphinx[.\w]*|encoders[.\w]*|checkpoint|closed_call|rematted_computation)$',
      name,
    )
  ]
  return f'{"/".join(names) or "loop"} {"backward" if "transpose" in path[1] else "forward"}'
