"""Document layout: the blocks of a page by class with their boxes, `Title [box], Text [box; box]` (DocLayNet)."""

from sphinx_jax.data.tasks import base

INSTRUCTIONS = (
    'Detect the document layout.',
    'Find the layout blocks of the page.',
    'List the parts of the page with boxes.',
    'Please detect all layout elements.',
)


def turns(annotation, rng, max_turns):
  """One turn: blocks in reading order (top, then left), grouped by class where it first appears."""
  del max_turns
  blocks = sorted(annotation['blocks'], key=lambda block: (block['box'][1], block['box'][0]))
  answer, truth = base.labelled_boxes([(block['label'], block['box']) for block in blocks])
  return [base.Turn(base.choose(INSTRUCTIONS, rng), answer, truth)]


TASK = base.Task('layout', 'F1 at IoU 0.5', INSTRUCTIONS, turns, base.labelled_f1, mirrors=False)
