"""Referring expression generation: a box -> the expression of the thing in it (RefCOCO, Visual Genome)."""

from sphinx_jax.core import coordinates
from sphinx_jax.tasks import task as base

INSTRUCTIONS = (
  'Please provide a short description for this region: {}.',
  'Describe the region {}.',
  'What is in the box {}?',
  'What is at {}?',
)


def turns(annotation, rng, max_turns):
  """One turn for each of up to max_turns objects; its first expression is trained, all are the truth's 'answers'."""
  objects = base.single(annotation['objects'])
  described = [item for item in objects if item.get('expressions')]
  result = []
  for item in base.sample(described or objects, rng, max_turns, 'objects'):
    box, answer, truth = base.checked_box(item['box']), base.expression(item), {}
    if described:
      answer, truth = item['expressions'][0], {'answers': list(item['expressions'])}
    instruction = base.choose(INSTRUCTIONS, rng).format(coordinates.format_box(box))
    result.append(base.Turn(instruction, answer, {'answer': answer, 'box': box, **truth}))
  return result


TASK = base.Task('reg', 'accuracy', INSTRUCTIONS, turns, base.any_match)
