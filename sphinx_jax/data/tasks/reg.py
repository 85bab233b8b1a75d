"""Referring expression generation: a box -> the expression of the thing in it."""

from sphinx_jax.core import coordinates
from sphinx_jax.data.tasks import base

INSTRUCTIONS = (
    'Please provide a short description for this region: {}.',
    'Describe the region {}.',
    'What is in the box {}?',
    'What is at {}?',
)


def turns(annotation, rng, max_turns):
  """One turn for each of up to max_turns objects."""
  result = []
  for item in base.sample(annotation['objects'], rng, max_turns, 'objects'):
    box, answer = base.checked_box(item['box']), base.expression(item)
    instruction = base.choose(INSTRUCTIONS, rng).format(coordinates.format_box(box))
    result.append(base.Turn(instruction, answer, {'answer': answer, 'box': box}))
  return result


TASK = base.Task('reg', 'accuracy', INSTRUCTIONS, turns, base.exact_match)
