"""Document layout: blocks of a page by class with their boxes, `Title [box], Text [box; box]`, or of one (DocLayNet)."""

from sphinx_jax.tasks import classes, task as base

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


def turns(annotation, rng, max_turns):
  """One turn: blocks in reading order, grouped by class where it first appears; or one for each of max_turns classes."""
  blocks = annotation['blocks']
  if classes.by_class(annotation, blocks, rng):
    return classes.turns(
      annotation, blocks, 'label', _reading_order, rng, max_turns, CLASS_INSTRUCTIONS
    )
  pairs = [
    (block['label'], block['box']) for block in sorted(base.single(blocks), key=_reading_order)
  ]
  answer, truth = base.labelled_boxes(pairs)
  return [base.Turn(base.choose(INSTRUCTIONS, rng), answer, truth)]


def _reading_order(block):
  return block['box'][1], block['box'][0]  # Top, then left.


TASK = base.Task('layout', 'F1 at IoU 0.5', INSTRUCTIONS, turns, base.labelled_f1, mirrors=False)
