"""One instruction for all tasks, in place of those of each task: what studies compare them with.

It keeps what is asked about (a question, an expression, a box), and leaves out what tells the tasks
apart.
"""

import dataclasses
import re
from collections.abc import Sequence

from sphinx_jax.tasks import task

INSTRUCTION = 'Answer about the image.'
_FILLED = INSTRUCTION + ' {}'


def with_common_instruction(turn: task.Turn, instructions: Sequence[str]) -> task.Turn:
  """Returns a turn whose instruction is the common one.

  A follow-up question, which has no instruction of the task around it, stays as it is.

  Args:
    turn: a turn of a task.
    instructions: all phrasings of the task, with '{}' for what is asked about.
  """
  if turn.instruction is None:
    return turn
  # A phrasing that is a part of another one is tried after it.
  for phrasing in sorted(instructions, key=len, reverse=True):
    pattern = '(.+)'.join(map(re.escape, phrasing.split('{}')))
    match = re.fullmatch(pattern, turn.instruction, re.DOTALL)
    if match:
      content = ', '.join(match.groups())
      instruction = _FILLED.format(content) if content else INSTRUCTION
      return dataclasses.replace(turn, instruction=instruction)
  return turn
