"""Object detection: every object's class with its boxes, `circle [box; box], cup [box]` (COCO, LVIS)."""

from sphinx_jax.data.tasks import base

INSTRUCTIONS = (
    'Detect all objects.',
    'Find all objects and their boxes.',
    'List every object with its box.',
    'Please detect all objects in the image.',
)


def turns(annotation, rng, max_turns):
  """One turn: objects from left to right, grouped by class where it first appears."""
  del max_turns
  things = sorted(annotation['objects'], key=base.center)
  answer, truth = base.labelled_boxes([(item['name'], item['box']) for item in things])
  return [base.Turn(base.choose(INSTRUCTIONS, rng), answer, truth)]


TASK = base.Task('detection', 'F1 at IoU 0.5', INSTRUCTIONS, turns, base.labelled_f1)
