"""Document layout: the blocks of a page by class, `Title [box], Text [box; box]`, or one class."""

from typing import Any

import numpy as np

from sphinx_jax.tasks import classes, task

INSTRUCTIONS = (
  'Detect the document layout.',
  'Find the layout blocks of the page.',
  'List the parts of the page with boxes.',
  'Please detect all layout elements.',
)
CLASS_INSTRUCTIONS = (
  'Detect all {} of the page.',
  'Find every {} block of the page.',
  'Where is {} on this page? Give its boxes.',
  'Please detect each {} element.',
)


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn about all blocks, or one for each of up to max_turns classes.

  Blocks are listed in reading order, each class where it first appears.
  """
  blocks = annotation['blocks']
  if classes.asks_by_class(annotation, blocks, rng):
    return classes.class_turns(
      annotation, blocks, 'label', _reading_order, rng, max_turns, CLASS_INSTRUCTIONS
    )
  ordered = sorted(task.without_crowds(blocks), key=_reading_order)
  answer, truth = task.format_labeled_boxes([(block['label'], block['box']) for block in ordered])
  return [task.Turn(task.choose(INSTRUCTIONS, rng), answer, truth)]


def _reading_order(block: dict[str, Any]) -> tuple[float, float]:
  """(top, left) of a block."""
  return block['box'][1], block['box'][0]


TASK = task.Task('layout', 'F1 at IoU 0.5', INSTRUCTIONS, turns, task.labeled_box_f1, mirrors=False)
