"""What kinds of mistakes a laptop recipe makes where objects are to be told apart.

    python -m benchmarks.mistakes workdir/mini/evaluate

A box (REC) or a name (REG) can be that of another object in the image. A relation can be on the
right axis and in the wrong direction. Reads the answers of an evaluation on miniworld. The objects
of an image are those of its grounded caption; `at random` is the score of one of them at random.
"""

import argparse
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import files
from sphinx_jax.core.text import table
from sphinx_jax.tasks import TASKS

_AXIS = {'above': 'y', 'below': 'y', 'left of': 'x', 'right of': 'x'}


def read(folder: pathlib.Path, task: str) -> list[dict[str, Any]]:
  """The answers to the questions of a task."""
  return files.read_jsonl(folder / f'{task}.final.jsonl')


def about_an_object(answer: Mapping[str, Any], objects: Mapping[str, Any]) -> str:
  """Which of the objects of an image the box or the name in an answer belongs to."""
  if answer['numerator']:
    return 'right'
  score = TASKS[answer['task']].score
  truths = [
    {'answer': label, 'box': box}
    for label, box in zip(objects['labels'], objects['boxes'], strict=True)
  ]
  is_one = any(score(answer['prediction'], truth)[0] for truth in truths)
  return 'another object' if is_one else 'no object'


def about_a_direction(answer: Mapping[str, Any]) -> str:
  """What is right about the direction in an answer."""
  if answer['numerator']:
    return 'right'
  is_axis = _AXIS.get(answer['prediction']) == _AXIS[answer['answer']]
  return 'right axis, wrong direction' if is_axis else 'wrong axis'


def row(task: str, kinds: Sequence[str], at_random: Sequence[float]) -> list[str]:
  """A line of the table, the most frequent kind first."""
  shares = [f'{count / len(kinds):.3f} {kind}' for kind, count in Counter(kinds).most_common()]
  return [task, str(len(kinds)), f'{np.mean(at_random):.3f}', '; '.join(shares)]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('evaluation', type=pathlib.Path, help='step `evaluate` of the recipe')
  folder = parser.parse_args().evaluation
  objects = {answer['id']: answer['truth'] for answer in read(folder, 'grounded_caption')}
  rows = [['task', 'questions', 'at random', 'share of the answers']]
  for task in ('rec', 'reg'):
    pairs = [(answer, objects[answer['id']]) for answer in read(folder, task)]
    pairs = [(answer, those) for answer, those in pairs if len(those['boxes']) > 1]
    at_random = [1 / len(those['boxes']) for _, those in pairs]
    rows.append(row(task, [about_an_object(*pair) for pair in pairs], at_random))
  words = [answer for answer in read(folder, 'relation') if answer['answer'] in _AXIS]
  directions = [about_a_direction(answer) for answer in words]
  rows.append(row('relation', directions, [1 / len(_AXIS)]))
  print(table(rows, align='lrrl'))


if __name__ == '__main__':
  main()
