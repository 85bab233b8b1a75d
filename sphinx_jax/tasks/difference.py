"""Two images: what was changed from the first to the second, or which has more of something.

The answers are compared lists of objects, so the task needs no list of colors or kinds. The three
answers about numbers are equally frequent where all of them are true of something.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.tasks import counting, task

INSTRUCTIONS = (
  'What differs between <image> and <image>?',
  '<image><image> What is different in the second image?',
  'Look at <image> and then at <image>. What was changed?',
  'First image: <image> Second image: <image> Name the difference.',
)
MORE_INSTRUCTIONS = (
  'Which of the two has more {}: <image> or <image>?',
  '<image><image> Which image has more {}?',
  'Are there more {} in <image> or in <image>?',
  'First image: <image> Second image: <image> Where are more {}?',
)
# After the first turn, which has the images.
_NEXT_CHANGE, _NEXT_MORE = 'What differs between the two?', 'Which of the two has more {}?'

ADDED, REMOVED, REPLACED = (
  '{after} is added',
  'the {before} is removed',
  'the {before} becomes {after}',
)
_CHANGES = (
  re.compile(r'(?P<after>.+) (?:is|was) added'),
  re.compile(r'(?P<before>.+) (?:is|was) (?:removed|gone)'),
  re.compile(r'(?P<before>.+?) (?:becomes|became|is now) (?P<after>.+)'),
)
# Sign of the second number minus the first -> the answer to train, and others that are right.
_MORE = {
  -1: ('the first', 'first image', 'in the first', 'in the first image'),
  1: ('the second', 'second image', 'in the second', 'in the second image'),
  0: ('both the same', 'the same', 'neither', 'none'),
}


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns up to max_turns questions. The first is about the change half of the time."""
  first, second = annotation['objects'], annotation['second']
  questions = [
    (MORE_INSTRUCTIONS, _NEXT_MORE, what, _MORE[sign][0], {'answers': list(_MORE[sign])})
    for what, sign in task.sample(_comparisons(first, second, rng), rng, 3, 'objects')
  ]
  change = _change(first, second)
  if change is not None:
    before, after = change
    answer = describe(before, after)
    truth = {'answer': answer, 'before': before, 'after': after}
    questions.insert(int(rng.random() < 0.5), (INSTRUCTIONS, _NEXT_CHANGE, '', answer, truth))
  result = []
  for instructions, next_instruction, what, answer, truth in questions[:max_turns]:
    instruction = next_instruction if result else task.choose(instructions, rng)
    result.append(task.Turn(instruction.replace('{}', what), answer, truth))
  return result


def _comparisons(
  first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], rng: np.random.Generator
) -> list[tuple[str, int]]:
  """Returns (what, sign of its number in the second image minus that in the first).

  It has one thing for each sign that any has.
  """
  numbers = [_numbers(things) for things in (first, second)]
  by_sign: dict[int, list[str]] = {}
  for what in sorted({*numbers[0], *numbers[1]}):
    by_sign.setdefault(int(np.sign(numbers[1][what] - numbers[0][what])), []).append(what)
  return [(task.choose(whats, rng), sign) for sign, whats in sorted(by_sign.items())]


def _numbers(objects: Sequence[dict[str, Any]]) -> Counter[str]:
  """Returns the number of objects, of those of each kind, and of those of each color."""
  numbers: Counter[str] = Counter()
  for thing in objects:
    numbers.update({'objects', counting.plural(thing['name'])})
    if thing.get('color'):
      numbers[f'{thing["color"]} things'] += 1
  return numbers


def _change(
  first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]
) -> tuple[str | None, str | None] | None:
  """Returns (object before, object after) if exactly one object differs, else None.

  The object is None where it is in one image only.
  """
  counts = [Counter(task.expression(thing) for thing in things) for things in (first, second)]
  gone, new = (list((a - b).elements()) for a, b in (counts, counts[::-1]))
  if max(len(gone), len(new)) != 1:
    return None
  return (gone or [None])[0], (new or [None])[0]


def describe(before: str | None, after: str | None) -> str:
  """Returns a change as text: ('red cup', 'red tree') -> 'the red cup becomes a red tree'."""
  form = ADDED if before is None else REMOVED if after is None else REPLACED
  return form.replace('{after}', task.with_article(after or '')).replace('{before}', before or '')


def parse(answer: str) -> tuple[str | None, str | None] | None:
  """Returns the change that an answer describes, as (before, after), or None."""
  text = task.normalize(answer)
  for pattern in _CHANGES:
    if found := pattern.fullmatch(text):
      things = found.groupdict()
      before, after = (things.get(key) for key in ('before', 'after'))
      return tuple(thing and task.normalize(thing) for thing in (before, after))
  return None


def score(answer: str, truth: Mapping[str, Any]) -> tuple[float, float]:
  """Accuracy. A change may be worded otherwise ('A red cup was added.')."""
  if 'before' in truth:
    expected = tuple(thing and task.normalize(thing) for thing in (truth['before'], truth['after']))
    if parse(answer) == expected:
      return 1.0, 1.0
  return task.any_match(answer, truth)


TASK = task.Task('difference', 'accuracy', INSTRUCTIONS, turns, score)
