"""Referring expression comprehension: an expression -> the box of the one thing it names (RefCOCO)."""

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.data.tasks import base

INSTRUCTIONS = (
    'Please provide the bounding box coordinate of the region this sentence describes: {}.',
    'Where is the {}?',
    'Give the box of the {}.',
    'Locate the {}.',
)


def turns(annotation, rng, max_turns):
  """One turn for each of up to max_turns objects whose expression names no other object."""
  names = [base.expression(item) for item in annotation['objects']]
  unique = [item for item, name in zip(annotation['objects'], names) if names.count(name) == 1]
  result = []
  for item in base.sample(unique, rng, max_turns, 'objects with an expression of their own'):
    box = base.checked_box(item['box'])
    instruction = base.choose(INSTRUCTIONS, rng).format(base.expression(item))
    result.append(base.Turn(instruction, coordinates.format_box(box), {'box': box, 'label': base.expression(item)}))
  return result


def score(answer, truth):
  """Accuracy at IoU 0.5 of the first box in the answer; `evaluate.protocols.rec` has the official reading of answers."""
  predicted = [box for _, group in coordinates.parse_groups(answer) for box in group if len(box) == 4]
  return float(bool(predicted) and boxes.iou(predicted[0], truth['box']) >= 0.5), 1.0


TASK = base.Task('rec', 'accuracy at IoU 0.5', INSTRUCTIONS, turns, score)
