"""Referring expression generation: a box -> the expression of the object in it (RefCOCO, ...)."""

from typing import Any

import numpy as np

from sphinx_jax.core import coordinates
from sphinx_jax.tasks import task

INSTRUCTIONS = (
  'Please provide a short description for this region: {}.',
  'Describe the region {}.',
  'What is in the box {}?',
  'What is at {}?',
)


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn for each of up to max_turns objects.

  The first expression is trained. All expressions are the truth's 'answers'.
  """
  objects = task.without_crowds(annotation['objects'])
  described = [thing for thing in objects if thing.get('expressions')]
  result = []
  for thing in task.sample(described or objects, rng, max_turns, 'objects'):
    box = task.check_box(thing['box'])
    if described:
      answer = thing['expressions'][0]
      truth = {'answer': answer, 'box': box, 'answers': list(thing['expressions'])}
    else:
      answer = task.expression(thing)
      truth = {'answer': answer, 'box': box}
    instruction = task.choose(INSTRUCTIONS, rng).format(coordinates.format_box(box))
    result.append(task.Turn(instruction, answer, truth))
  return result


TASK = task.Task('reg', 'accuracy', INSTRUCTIONS, turns, task.any_match)
