"""Text without images: a whole document, or a sentence to continue or to write.

There is no metric, only the loss.
"""

from typing import Any

import numpy as np

from sphinx_jax.tasks import task

INSTRUCTIONS = (
  'Continue: {}',
  'Complete the sentence: {}',
  'How does this go on? {}',
  'Write a sentence.',
)


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn.

  A document is all answer, with no question before it, as in pretraining. For a sentence, the
  instruction shows a quarter to half of the words and the answer is the rest, or the instruction
  shows none and the answer is the whole sentence.
  """
  del max_turns
  if annotation.get('document'):
    answer = annotation['text'].strip()
    return [task.Turn(None, answer, {'answer': answer})]
  words = annotation['text'].split()
  instruction = task.choose(INSTRUCTIONS, rng)
  shown = 0
  if '{}' in instruction:
    # A single word stays in the answer, which must not be empty.
    shown = int(rng.integers(len(words) // 4, len(words) // 2 + 1))
  answer = ' '.join(words[shown:])
  return [task.Turn(instruction.format(' '.join(words[:shown])), answer, {'answer': answer})]


def score(answer: str, truth: dict[str, Any]) -> tuple[float, float]:
  """(0, 0): an open-ended answer adds nothing to any mean."""
  del answer, truth
  return 0.0, 0.0


TASK = task.Task('text', 'none', INSTRUCTIONS, turns, score)
