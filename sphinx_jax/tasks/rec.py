"""Referring expression comprehension: an expression -> the box of the object (RefCOCO, ...)."""

from typing import Any

import numpy as np

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.tasks import task

INSTRUCTIONS = (
  'Please provide the bounding box coordinate of the region this sentence describes: {}.',
  'Where is the {}?',
  'Give the box of the {}.',
  'Locate the {}.',
)


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn for each of up to max_turns objects.

  It asks for one of the object's expressions, or for a name that no other object has.
  """
  candidates = task.unambiguous_expressions(annotation['objects'])
  asked = task.sample(candidates, rng, max_turns, 'objects with an expression of their own')
  result = []
  for thing, expressions in asked:
    box = task.check_box(thing['box'])
    label = expressions[0] if len(expressions) == 1 else task.choose(expressions, rng)
    instruction = task.choose(INSTRUCTIONS, rng)
    # Many sentences of datasets begin with an article themselves.
    phrase = task.without_article(label) if 'the {}' in instruction else label
    answer = coordinates.format_box(box)
    result.append(task.Turn(instruction.format(phrase), answer, {'box': box, 'label': label}))
  return result


def score(answer: str, truth: dict[str, Any]) -> tuple[float, float]:
  """Accuracy at IoU 0.5 of the first box in the answer.

  The official reading of answers is in evaluation/protocols/rec.py.
  """
  predicted = [
    box for _, group in coordinates.parse_groups(answer) for box in group if len(box) == 4
  ]
  return float(bool(predicted) and boxes.iou(predicted[0], truth['box']) >= 0.5), 1.0


TASK = task.Task('rec', 'accuracy at IoU 0.5', INSTRUCTIONS, turns, score)
