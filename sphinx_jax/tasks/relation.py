"""Relations: how one object relates to another, or which object has a relation (Visual Genome).

The relations of a dataset are asked as they are. Without them, relations are made of positions.
Subject and object are asked in either order alike, so 'left of' is as frequent as 'right of', and
'above' as 'below'.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import coordinates
from sphinx_jax.tasks import task

INSTRUCTIONS = (
  'What is the relation between the {} and the {}?',
  'How is the {} placed to the {}?',
  'Where is the {} relative to the {}?',
  'Relation of the {} to the {}?',
)
# For the relations of a dataset, which are not only of place.
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

_SUBJECT_INSTRUCTIONS = (
  'What is {} the {}?',
  'Which thing is {} the {}?',
  'Name the object {} the {}.',
)
_OBJECT_SHARE = 0.25  # Of the questions that ask for an object and not for the relation.


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns up to max_turns questions, each about another ordered pair.

  One in four asks for an object, and not for the relation.
  """
  objects = annotation['objects']
  if 'relations' in annotation:
    return _given_turns(objects, annotation['relations'], rng, max_turns)
  pairs = []
  for a in objects:
    for b in objects:
      predicate = None if a is b else task.direction(a, b)
      if predicate and task.expression(a) != task.expression(b):
        pairs.append((a, b, predicate))
  result = []
  for a, b, predicate in task.sample(pairs, rng, max_turns, 'two objects in a clear relation'):
    subject, other = task.expression(a), task.expression(b)
    if rng.random() < _OBJECT_SHARE and _is_only_subject(a, b, predicate, objects):
      question = task.choose(_SUBJECT_INSTRUCTIONS, rng).format(predicate, other)
      answer = subject
    else:
      question = task.choose(INSTRUCTIONS, rng).format(subject, other)
      answer = predicate
    result.append(task.Turn(question, answer, {'answer': answer}))
  return result


def _is_only_subject(
  a: dict[str, Any], b: dict[str, Any], predicate: str, objects: Sequence[dict[str, Any]]
) -> bool:
  """Whether all other objects are clearly elsewhere, so that the question has one answer."""
  return all(
    task.direction(c, b) not in (predicate, None) for c in objects if c is not a and c is not b
  )


def _given_turns(
  objects: Sequence[dict[str, Any]],
  relations: Sequence[dict[str, Any]],
  rng: np.random.Generator,
  max_turns: int,
) -> list[task.Turn]:
  names = [task.expression(thing) for thing in objects]
  references = []  # What an object is called in a question.
  for name, thing in zip(names, objects):
    if names.count(name) > 1:
      name = f'{name} {coordinates.format_box(task.check_box(thing["box"]))}'
    references.append(name)
  # All predicates of an ordered pair are right, and a pair is asked once.
  predicates_of_pair: dict[tuple[int, int], list[str]] = {}
  for relation in relations:
    a, b = relation['subject'], relation['object']
    if a != b and not (objects[a].get('crowd') or objects[b].get('crowd')):
      predicates_of_pair.setdefault((a, b), []).append(relation['predicate'])
  pairs = list(predicates_of_pair.items())
  result = []
  for (a, b), predicates in task.sample(pairs, rng, max_turns, 'relations'):
    predicate = task.choose(predicates, rng)
    if rng.random() < _OBJECT_SHARE:
      things = [objects[d] for (c, d), others in pairs if c == a and predicate in others]
      answer, truth = task.format_labeled_boxes(
        [(task.expression(thing), thing['box']) for thing in things]
      )
      question = task.choose(OBJECT_INSTRUCTIONS, rng).format(references[a], predicate)
    else:
      answer, truth = predicate, {'answer': predicate, 'answers': predicates}
      question = task.choose(GIVEN_INSTRUCTIONS, rng).format(references[a], references[b])
    result.append(task.Turn(question, answer, truth))
  return result


def score(answer: str, truth: dict[str, Any]) -> tuple[float, float]:
  """Accuracy of a relation or a name. F1 of the boxes, if the question asks for objects."""
  if 'boxes' not in truth:
    return task.any_match(answer, truth)
  numerator, denominator = task.labeled_box_f1(answer, truth)
  return numerator / denominator, 1.0


TASK = task.Task('relation', 'accuracy', INSTRUCTIONS, turns, score)
