"""Document layout: the blocks of a page by class with their boxes (DocLayNet's eleven classes)."""

from sphinx_jax.data.record import BadExample
from sphinx_jax.data.tasks import base

LABELS = ('Caption', 'Footnote', 'Formula', 'List-item', 'Page-footer', 'Page-header', 'Picture', 'Section-header',
          'Table', 'Text', 'Title')

INSTRUCTIONS = (
    'Detect the document layout.',
    'Find the layout blocks of the page.',
    'List the parts of the page with boxes.',
    'Please detect all layout elements.',
)


def turns(annotation, rng, max_turns):
  """One turn: blocks in reading order (top, then left), grouped by class where it first appears."""
  del max_turns
  for block in annotation['blocks']:
    if block['label'] not in LABELS:
      raise BadExample('unknown layout class', f"{block['label']!r}, expected one of {', '.join(LABELS)}")
  blocks = sorted(annotation['blocks'], key=lambda block: (block['box'][1], block['box'][0]))
  answer, truth = base.labelled_boxes([(block['label'], block['box']) for block in blocks])
  return [base.Turn(base.choose(INSTRUCTIONS, rng), answer, truth)]


TASK = base.Task('layout', 'F1 at IoU 0.5', INSTRUCTIONS, turns, base.labelled_f1)
