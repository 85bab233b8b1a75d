"""Counting: how many of a class there are, sometimes none (COCO, LVIS)."""

import re

from sphinx_jax.tasks import classes, task as base

INSTRUCTIONS = (
  base.SHORT_ANSWER,
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


def turns(annotation, rng, max_turns):
  """One turn for each of up to max_turns classes; one with a crowd cannot be counted."""
  present, absent = classes.sort(annotation, annotation['objects'], 'name', crowds=False)
  names = classes.choose(list(present), absent, rng, max_turns)
  questions = [
    (base.choose(_QUESTIONS, rng).format(plural(name)), str(len(present.get(name, ()))))
    for name in names
  ]
  return base.short_answer_turns(questions, rng, INSTRUCTIONS)


def plural(name: str) -> str:
  """'dining table' -> 'dining tables', 'person' -> 'people'; a name in -s is one already ('skis'), but for 'bus', 'glass'."""
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


TASK = base.Task('counting', 'accuracy', INSTRUCTIONS, turns, base.exact_match)
