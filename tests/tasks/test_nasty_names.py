"""The true answer scores 1 by the task's own metric, whatever the names of a dataset hold."""

import random

import numpy as np
import pytest

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import TASKS
from tests.tasks import scenes

NAMES = (
  'sign [stop]',
  'a [0.1, 0.2, 0.3, 0.4] b',
  '[0.10, 0.20]',
  '[',
  ']x[',
  'cup; hat',
  'Smith, John',
  '<p>cup</p>',
  '</p>',
  'and gate',
  'AND the and a gate',
  'and',
  'A',
  'the a',
  'fire\nhydrant',
  '\tred\r\ncup ',
  '42',
  '0.5, 0.5',
  'route 66.',
  'No.',
  ':-)',
  '...',
  '"quoted"',
  '{} {name} %s',
  'None',
  'yes',
  'İstanbul ſ',
  '\u202eעברית',
  '图片',
  '🌳',
  '\x00\x07',
  '### Human: hi',
  'x' * 300,
)
_PIECES = ('[', ']', ';', ',', '<p>', '</p>', '\n', ' ', 'and', 'the', 'a', '.', ':', '0.1', 'cup')


def random_name(rng: random.Random) -> str:
  return ''.join(rng.choices(_PIECES, k=rng.randrange(1, 7)))


def scene(names: tuple[str, str, str]) -> dict:
  """An annotation for every task, with the names in place of ordinary ones."""
  things = [{**thing, 'name': name, 'color': ''} for thing, name in zip(scenes.OBJECTS, names)]
  return {
    'objects': things,
    'second': things[1:],
    'classes': [*names, 'absent'],
    'words': [{**word, 'text': name} for word, name in zip(scenes.WORDS, names)],
    'blocks': [{**block, 'label': name} for block, name in zip(scenes.BLOCKS, names)],
    'people': [scenes.PERSON],
    'relations': [{'subject': 0, 'predicate': names[2], 'object': 1}],
    'caption': names[0],
  }


def forms(names: tuple[str, str, str]) -> list[tuple[str, dict]]:
  """Returns (task, annotation) of all forms in which tasks take names."""
  whole = scene(names)
  plain = {key: value for key, value in whole.items() if key not in ('classes', 'relations')}
  phrases = [{'text': 'See '}, {'text': names[0], 'boxes': [scenes.BLOCKS[0]['box']]}]
  phrases += [{'text': f' {names[1]} by '}, {'text': names[2], 'boxes': [scenes.BLOCKS[1]['box']]}]
  asked = {'id': '1', 'question': names[0], 'answer': names[1]}
  choice = {'id': '2', 'question': names[0], 'answer': 'B', 'choices': list(names)}
  expressed = [{**thing, 'expressions': [thing['name']]} for thing in whole['objects']]
  return [
    *((name, form) for name in scenes.SCORED for form in (whole, plain)),
    ('grounded_caption', {'phrases': phrases}),
    *((name, {'questions': [asked, choice]}) for name in ('vqa', 'ocr')),
    *((name, {'objects': expressed}) for name in ('rec', 'reg')),
  ]


def check(names: tuple[str, str, str], seed: int) -> int:
  """Scores the true answers of all tasks; returns their number."""
  scored = 0
  for name, annotation in forms(names):
    try:
      turns = TASKS[name].turns(annotation, np.random.default_rng(seed), 3)
    except BadExample:
      continue  # It has nothing to ask, and is counted.
    for turn in turns:
      got, most = TASKS[name].score(turn.answer.strip(), turn.truth)
      assert got == most > 0, (name, names, turn)
      scored += 1
  return scored


@pytest.mark.parametrize('number', range(len(NAMES)))
def test_true_answers_score_one(number):
  names = (NAMES[number], NAMES[number - 1], NAMES[number - 2])
  assert sum(check(names, seed) for seed in range(4)) > 40


def test_true_answers_score_one_with_random_names():
  rng = random.Random(0)
  for seed in range(60):
    check((random_name(rng), random_name(rng), random_name(rng)), seed)


@pytest.mark.slow
def test_true_answers_score_one_with_many_random_names():
  rng = random.Random(1)
  for seed in range(2000):
    check((random_name(rng), random_name(rng), random_name(rng)), seed)
