"""Counting: how many objects of a class there are, sometimes none (COCO, LVIS)."""

import re
from typing import Any

import numpy as np

from sphinx_jax.tasks import classes, task

INSTRUCTIONS = (
  task.SHORT_ANSWER,
  '{} Answer with a number.',
  '{} Short answer.',
  '{}',
)

_QUESTIONS = (
  'How many {} are in the image?',
  'How many {} are there?',
  'What is the number of {}?',
  'Count the {}.',
)
_IRREGULAR = {
  'person': 'people',
  'man': 'men',
  'woman': 'women',
  'child': 'children',
  'mouse': 'mice',
  'knife': 'knives',
  'shelf': 'shelves',
  'leaf': 'leaves',
  'foot': 'feet',
  'tooth': 'teeth',
  'goose': 'geese',
  'sheep': 'sheep',
  'fish': 'fish',
  'deer': 'deer',
  'people': 'people',
  'men': 'men',
  'women': 'women',
  'children': 'children',
}


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn for each of up to max_turns classes. A class with a crowd is not counted."""
  present, absent = classes.split_classes(
    annotation, annotation['objects'], 'name', with_crowds=False
  )
  questions = []
  for name in classes.choose_classes(list(present), absent, rng, max_turns):
    question = task.choose(_QUESTIONS, rng).format(plural(name))
    questions.append((question, str(len(present.get(name, ())))))
  return task.short_answer_turns(questions, rng, INSTRUCTIONS)


def plural(name: str) -> str:
  """Returns the plural of a class name: 'dining table' -> 'dining tables', 'person' -> 'people'.

  A name in -s is a plural already ('skis'), except in -ss and -us ('glass', 'bus').
  """
  head, space, last = name.rpartition(' ')
  if last.lower() in _IRREGULAR:
    last = _IRREGULAR[last.lower()]
  elif re.search(r'(ss|us|x|z|ch|sh)$', last):
    last += 'es'
  elif re.search(r'[^aeiou]y$', last):
    last = f'{last[:-1]}ies'
  elif not last.endswith('s'):
    last += 's'
  return head + space + last


TASK = task.Task('counting', 'accuracy', INSTRUCTIONS, turns, task.exact_match)
