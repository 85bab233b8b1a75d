"""Compiles an update for a slice that is not present, and returns what the compiler reports."""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax

from sphinx_jax.core.progress import log
from sphinx_jax.planning import compiler_dumps


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiler's answer.

  Attributes:
    arguments: bytes on a device of the state and a batch, padded as they are stored there.
    temporaries: bytes of working memory: activations, gradients, gathered weights.
    code: bytes of the program itself, which is stored in HBM too.
    total: bytes in use at once.
    details: largest buffers and collectives, as far as they could be read.
    seconds: time of the compilation.
    fits: False if the compiler refused. Then `total` is what it asked for, or 0 if its message
      cannot be read, and the rest is empty.
  """

  arguments: int
  temporaries: int
  code: int
  total: int
  details: compiler_dumps.Details
  seconds: float
  fits: bool


def compile_update(lowered: jax.stages.Lowered, details: bool = True) -> Compiled:
  """Compiles for the devices that the program was lowered for; runs nothing.

  Args:
    lowered: `Program.lower()`.
    details: whether to read buffers and collectives too.
  """
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as directory:
    try:
      compiled = _compile(lowered, directory if details else None)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      return Compiled(
        arguments=0,
        temporaries=0,
        code=0,
        total=compiler_dumps.requested_bytes(str(error)),
        details=compiler_dumps.Details(),
        seconds=time.monotonic() - began,
        fits=False,
      )
    seconds = time.monotonic() - began
    read = compiler_dumps.Details()
    if details:
      read = compiler_dumps.read(compiled, pathlib.Path(directory))
  memory: Any = compiled.memory_analysis()
  new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Compiled(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    total=memory.argument_size_in_bytes
    + new_outputs
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes,
    details=read,
    seconds=seconds,
    fits=True,
  )


def _compile(lowered: jax.stages.Lowered, dump_to: str | None) -> jax.stages.Compiled:
  """Compiles, and dumps the buffer assignment if the compiler knows these options."""
  if dump_to is None:
    return lowered.compile()
  options = {'xla_dump_to': dump_to, 'xla_dump_hlo_as_text': True}
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if 'compile option' not in str(error):
      raise
    log.warning('the compiler does not know xla_dump_to: largest buffers are unavailable')
    return lowered.compile()
