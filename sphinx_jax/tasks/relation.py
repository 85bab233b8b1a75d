"""Relation detection: how one thing relates to another, or which thing does so (Visual Genome's triples).

Given relations are asked as they are. Without them they are made of places, and subject and object are asked in either
order alike, so left and right, and above and below, come equally often.
"""

from sphinx_jax.core import coordinates
from sphinx_jax.tasks import task as base

INSTRUCTIONS = (
  'What is the relation between the {} and the {}?',
  'How is the {} placed to the {}?',
  'Where is the {} relative to the {}?',
  'Relation of the {} to the {}?',
)
GIVEN_INSTRUCTIONS = (
  INSTRUCTIONS[0],
  'How does the {} relate to the {}?',
  'Which relation has the {} to the {}?',
  'Relation of the {} to the {}?',
)
OBJECT_INSTRUCTIONS = (
  'The {} {} what? Answer with its name and box.',
  'Detect what the {} is in this relation to: {}.',
  'Complete with a name and a box: {} {}',
)

_SUBJECT = ('What is {} the {}?', 'Which thing is {} the {}?', 'Name the object {} the {}.')


def turns(annotation, rng, max_turns):
  """Up to max_turns questions, each about another ordered pair; one in four asks for a thing and not for the relation."""
  objects = annotation['objects']
  if 'relations' in annotation:
    return _given(objects, annotation['relations'], rng, max_turns)
  pairs = [(a, b, base.direction(a, b)) for a in objects for b in objects if a is not b]
  told = [
    pair for pair in pairs if pair[2] and base.expression(pair[0]) != base.expression(pair[1])
  ]
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
  return all(
    base.direction(c, b) not in (predicate, None) for c in objects if c is not a and c is not b
  )


def _given(objects, relations, rng, max_turns):
  names = [base.expression(item) for item in objects]
  asked = [
    name
    if names.count(name) == 1
    else f'{name} {coordinates.format_box(base.checked_box(item["box"]))}'
    for name, item in zip(names, objects)
  ]
  pairs: dict[
    tuple, list[str]
  ] = {}  # All that is said of an ordered pair is right, and a pair is asked once.
  for relation in relations:
    a, b = relation['subject'], relation['object']
    if a != b and not (objects[a].get('crowd') or objects[b].get('crowd')):
      pairs.setdefault((a, b), []).append(relation['predicate'])
  result = []
  for (a, b), predicates in base.sample(list(pairs.items()), rng, max_turns, 'relations'):
    predicate = base.choose(predicates, rng)
    if rng.random() < 0.25:
      things = [objects[d] for (c, d), said in pairs.items() if c == a and predicate in said]
      answer, truth = base.labelled_boxes(
        [(base.expression(thing), thing['box']) for thing in things]
      )
      question = base.choose(OBJECT_INSTRUCTIONS, rng).format(asked[a], predicate)
    else:
      answer, truth = predicate, {'answer': predicate, 'answers': predicates}
      question = base.choose(GIVEN_INSTRUCTIONS, rng).format(asked[a], asked[b])
    result.append(base.Turn(question, answer, truth))
  return result


def score(answer, truth):
  """Accuracy of a relation or a name; the F1 of a question's boxes where things are asked for with theirs."""
  if 'boxes' not in truth:
    return base.any_match(answer, truth)
  right, most = base.labelled_f1(answer, truth)
  return right / most, 1.0


TASK = base.Task('relation', 'accuracy', INSTRUCTIONS, turns, score)
