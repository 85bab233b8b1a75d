"""Referring expression comprehension: an expression -> the box of the one thing it names (RefCOCO, Visual Genome)."""

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.tasks import task as base

INSTRUCTIONS = (
  'Please provide the bounding box coordinate of the region this sentence describes: {}.',
  'Where is the {}?',
  'Give the box of the {}.',
  'Locate the {}.',
)


def turns(annotation, rng, max_turns):
  """One turn for each of up to max_turns objects: one of its expressions, or a name that no other object has."""
  asked = base.referred(annotation['objects'])
  result = []
  for item, expressions in base.sample(
    asked, rng, max_turns, 'objects with an expression of their own'
  ):
    box = base.checked_box(item['box'])
    label = expressions[0] if len(expressions) == 1 else base.choose(expressions, rng)
    wording = base.choose(INSTRUCTIONS, rng)
    # Sentences of datasets often begin with an article themselves.
    said = base.without_article(label) if 'the {}' in wording else label
    result.append(
      base.Turn(wording.format(said), coordinates.format_box(box), {'box': box, 'label': label})
    )
  return result


def score(answer, truth):
  """Accuracy at IoU 0.5 of the first box in the answer; `evaluate.protocols.rec` has the official reading of answers."""
  predicted = [
    box for _, group in coordinates.parse_groups(answer) for box in group if len(box) == 4
  ]
  return float(bool(predicted) and boxes.iou(predicted[0], truth['box']) >= 0.5), 1.0


TASK = base.Task('rec', 'accuracy at IoU 0.5', INSTRUCTIONS, turns, score)
