"""Object detection: every class with its boxes, `circle [box; box], cup [box]`, or one class asked for (COCO, LVIS)."""

from sphinx_jax.tasks import classes, task as base

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


def turns(annotation, rng, max_turns):
  """One turn: objects from left to right, grouped by class where it first appears; or one for each of max_turns classes."""
  objects = annotation['objects']
  if classes.by_class(annotation, objects, rng):
    return classes.turns(
      annotation, objects, 'name', base.center, rng, max_turns, CLASS_INSTRUCTIONS
    )
  things = sorted(base.single(objects), key=base.center)
  answer, truth = base.labelled_boxes([(item['name'], item['box']) for item in things])
  return [base.Turn(base.choose(INSTRUCTIONS, rng), answer, truth)]


TASK = base.Task('detection', 'F1 at IoU 0.5', INSTRUCTIONS, turns, base.labelled_f1)
