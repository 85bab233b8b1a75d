"""Object detection: all classes with their boxes, `circle [box; box], cup [box]`, or one class."""

from typing import Any

import numpy as np

from sphinx_jax.tasks import classes, task

INSTRUCTIONS = (
  'Detect all objects.',
  'Find all objects and their boxes.',
  'List every object with its box.',
  'Please detect all objects in the image.',
)
CLASS_INSTRUCTIONS = (
  'Detect all {}.',
  'Find every {} and its box.',
  'Give the box of each {}.',
  'Please detect each {} in the image.',
)


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn about all objects, or one for each of up to max_turns classes.

  Objects are listed from left to right, each class where it first appears.
  """
  objects = annotation['objects']
  if classes.asks_by_class(annotation, objects, rng):
    return classes.class_turns(
      annotation, objects, 'name', task.center, rng, max_turns, CLASS_INSTRUCTIONS
    )
  ordered = sorted(task.without_crowds(objects), key=task.center)
  answer, truth = task.format_labeled_boxes([(thing['name'], thing['box']) for thing in ordered])
  return [task.Turn(task.choose(INSTRUCTIONS, rng), answer, truth)]


TASK = task.Task('detection', 'F1 at IoU 0.5', INSTRUCTIONS, turns, task.labeled_box_f1)
