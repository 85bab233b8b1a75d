"""Relation detection: how one thing lies to another, or which thing lies so (Visual Genome's triples).

Subject and object are asked in either order alike, so left and right, and above and below, come equally often.
"""

from sphinx_jax.data.tasks import base

INSTRUCTIONS = (
    'What is the relation between the {} and the {}?',
    'How is the {} placed to the {}?',
    'Where is the {} relative to the {}?',
    'Relation of the {} to the {}?',
)

_SUBJECT = ('What is {} the {}?', 'Which thing is {} the {}?', 'Name the object {} the {}.')


def turns(annotation, rng, max_turns):
  """Up to max_turns questions, each about another ordered pair; one in four asks for the subject of the relation."""
  objects = annotation['objects']
  pairs = [(a, b, base.direction(a, b)) for a in objects for b in objects if a is not b]
  told = [pair for pair in pairs if pair[2] and base.expression(pair[0]) != base.expression(pair[1])]
  result = []
  for a, b, predicate in base.sample(told, rng, max_turns, 'two objects in a clear relation'):
    subject, other = base.expression(a), base.expression(b)
    if rng.random() < 0.25 and _only(a, b, predicate, objects):
      question, answer = base.choose(_SUBJECT, rng).format(predicate, other), subject
    else:
      question, answer = base.choose(INSTRUCTIONS, rng).format(subject, other), predicate
    result.append(base.Turn(question, answer, {'answer': answer}))
  return result


def _only(a, b, predicate, objects):
  """Whether everything else clearly lies otherwise, so that the question has one answer."""
  return all(base.direction(c, b) not in (predicate, None) for c in objects if c is not a and c is not b)


TASK = base.Task('relation', 'accuracy', INSTRUCTIONS, turns, base.exact_match)
