"""General VQA: the questions of a dataset (VQAv2, GQA, ScienceQA), or short ones about its objects.

The latter ask about color, kind, presence, number and position. They need only the scene,
so the task needs no list of colors or kinds. Their wording does not give the answer away: half of
the questions of presence are about a pair of color and kind that is in the image, half about a
pair whose color and kind are in the image on different objects.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import questions, task

INSTRUCTIONS = (
  task.SHORT_ANSWER,
  '{} Answer in a word.',
  '{} Short answer.',
  '{}',
)

_COLOR = ('What color is the {}?', 'Which color does the {} have?', 'What is the color of the {}?')
_KIND = ('What is the {} thing?', 'Which object is {}?', 'What is {} here?')
_PRESENCE = ('Is there {}?', 'Can you see {}?', 'Does the image show {}?')
_NUMBER = (
  'How many objects are there?',
  'How many things can you see?',
  'What is the number of objects?',
)
_POSITION = (
  'Where is the {}?',
  'In which corner is the {}?',
  'In which part of the image is the {}?',
)
_MIN_FROM_MIDDLE = 0.14  # An object nearer to a middle line is in no corner.

Questions = list[tuple[str, str]]  # (question, answer)


def _color_questions(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> Questions:
  names = [thing['name'] for thing in objects]
  return [
    (task.choose(_COLOR, rng).format(thing['name']), thing['color'])
    for thing in objects
    if thing.get('color') and names.count(thing['name']) == 1
  ]


def _kind_questions(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> Questions:
  colors = [thing.get('color') for thing in objects]
  return [
    (task.choose(_KIND, rng).format(thing['color']), thing['name'])
    for thing in objects
    if thing.get('color') and colors.count(thing['color']) == 1
  ]


def _presence_questions(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> Questions:
  present = sorted({(thing['color'], thing['name']) for thing in objects if thing.get('color')})
  crossed = sorted({(color, name) for color, _ in present for _, name in present} - set(present))
  count = min(len(present), len(crossed))
  if not count:
    return []
  pairs = [(pair, 'yes') for pair in task.sample(present, rng, count, 'objects')]
  pairs += [(pair, 'no') for pair in task.sample(crossed, rng, count, 'objects')]
  return [
    (task.choose(_PRESENCE, rng).format(task.with_article(f'{color} {name}')), answer)
    for (color, name), answer in pairs
  ]


def _number_questions(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> Questions:
  return [(task.choose(_NUMBER, rng), str(len(objects)))]


def _position_questions(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> Questions:
  names = [task.expression(thing) for thing in objects]
  result = []
  for thing, name in zip(objects, names):
    x, y = task.center(thing)
    from_middle = min(abs(x - 0.5), abs(y - 0.5))
    if names.count(name) == 1 and from_middle >= _MIN_FROM_MIDDLE:
      corner = f'{"upper" if y < 0.5 else "lower"} {"left" if x < 0.5 else "right"}'
      result.append((task.choose(_POSITION, rng).format(name), corner))
  return result


QUESTION_KINDS = {
  'color': _color_questions,
  'kind': _kind_questions,
  'presence': _presence_questions,
  'number': _number_questions,
  'position': _position_questions,
}


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns the first max_turns questions of the dataset, or as many about objects.

  The latter are of as many kinds as possible, in random order.
  """
  if 'questions' in annotation:
    return questions.turns(annotation['questions'], rng, max_turns, INSTRUCTIONS)
  if not annotation['objects']:
    raise BadExample('nothing to ask', 'the annotation has no objects')
  asked = scene_questions(annotation['objects'], rng)[:max_turns]
  return task.short_answer_turns(asked, rng, INSTRUCTIONS)


def scene_questions(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> Questions:
  """Returns all questions about at least one object.

  They come in rounds: one question of every kind that has any left.
  """
  pools = [make_questions(objects, rng) for make_questions in QUESTION_KINDS.values()]
  pools = [task.sample(pool, rng, len(pool), 'questions') for pool in pools if pool]
  order = task.sample(pools, rng, len(pools), 'questions')
  rounds = max(len(pool) for pool in order)
  return [pool[i] for i in range(rounds) for pool in order if i < len(pool)]


TASK = task.Task('vqa', 'accuracy', INSTRUCTIONS, turns, questions.score)
