"""What kinds of mistakes a laptop recipe makes where objects are to be told apart.

    python -m benchmarks.mistakes workdir/mini/evaluate

A box (REC) or a name (REG) can be that of another object in the image. A relation can be on the
right axis and in the wrong direction. Reads the answers of an evaluation on miniworld. The objects
of an image are those of its grounded caption.
"""

import argparse
import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.core.text import table

_AXIS = {'above': 'y', 'below': 'y', 'left of': 'x', 'right of': 'x'}


def read(folder: pathlib.Path, task: str) -> list[dict[str, Any]]:
  """The answers to the questions of a task."""
  return [json.loads(line) for line in (folder / f'{task}.final.jsonl').open()]


def of_rec(answer: dict[str, Any], objects: dict[str, Any]) -> str:
  """Whose box an answer is."""
  if answer['numerator']:
    return 'right'
  groups = coordinates.parse_groups(answer['prediction'])
  found = [box for _, parts in groups for box in parts if len(box) == 4]
  hit = any(boxes.iou(box, other) >= 0.5 for box in found[:1] for other in objects['boxes'])
  return 'another object' if hit else 'no object'


def of_reg(answer: dict[str, Any], objects: dict[str, Any]) -> str:
  """Whose name an answer is."""
  if answer['numerator']:
    return 'right'
  return 'another object' if answer['prediction'] in objects['labels'] else 'no object'


def of_relation(answer: dict[str, Any]) -> str:
  """What is right about a direction."""
  if answer['numerator']:
    return 'right'
  axes = [_AXIS.get(answer[side]) for side in ('prediction', 'answer')]
  return 'right axis, wrong direction' if axes[0] == axes[1] else 'wrong axis'


def row(task: str, kinds: Sequence[str]) -> list[str]:
  """A line of the table, the most frequent kind first."""
  shares = [f'{count / len(kinds):.3f} {kind}' for kind, count in Counter(kinds).most_common()]
  return [task, str(len(kinds)), '; '.join(shares)]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('evaluation', type=pathlib.Path, help='step `evaluate` of the recipe')
  folder = parser.parse_args().evaluation
  objects = {answer['id']: answer['truth'] for answer in read(folder, 'grounded_caption')}
  rows = [['task', 'questions', 'share of the answers']]
  for task, kind_of in (('rec', of_rec), ('reg', of_reg)):
    answers = [answer for answer in read(folder, task) if len(objects[answer['id']]['boxes']) > 1]
    rows.append(row(task, [kind_of(answer, objects[answer['id']]) for answer in answers]))
  words = [answer for answer in read(folder, 'relation') if answer['answer'] in _AXIS]
  rows.append(row('relation', [of_relation(answer) for answer in words]))
  print(table(rows, align='lrl'))


if __name__ == '__main__':
  main()
