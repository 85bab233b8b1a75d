"""MME score (arXiv 2306.13394): two yes/no questions a picture; accuracy plus share of pictures with both right."""

import pathlib
from collections.abc import Sequence

from sphinx_jax.core import errors
from sphinx_jax.evaluation.protocols import scoring as base

SUBTASKS = {
  'perception': (
    'existence',
    'count',
    'position',
    'color',
    'posters',
    'celebrity',
    'scene',
    'landmark',
    'artwork',
    'OCR',
  ),
  'cognition': (
    'commonsense_reasoning',
    'numerical_calculation',
    'text_translation',
    'code_reasoning',
  ),
}


def yes_or_no(answer: str) -> str:
  """'yes' or 'no' where it occurs in the first four characters, in this order of preference, else 'other'."""
  start = answer.lower()[:4]
  return next((word for word in ('yes', 'no') if word in start), 'other')


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """1.0 or 0.0 for every question."""
  del official
  return [float(yes_or_no(e['answer']) == e['gt_answers'].lower()) for e in entries]


def subtask_score(entries: Sequence[dict]) -> dict[str, float]:
  """{'acc', 'acc+': in [0, 1], 'score': 100 (acc + acc+)} of one subtask's entries, see `score`."""
  pictures = {}
  for entry in entries:
    truth = entry['gt_answers'].lower()
    if truth not in ('yes', 'no'):
      raise errors.make(
        f"MME question about '{entry['image_path']}'",
        f"true answer '{truth}'",
        "'yes' or 'no'",
        'check the annotations',
      )
    pictures.setdefault(entry['image_path'], []).append(yes_or_no(entry['answer']) == truth)
  for picture, right in pictures.items():
    if len(right) != 2:
      raise errors.make(
        f"MME picture '{picture}'", f'{len(right)} questions', '2', 'score whole pictures'
      )
  accuracy = sum(map(sum, pictures.values())) / (2 * len(pictures))
  both = sum(map(all, pictures.values())) / len(pictures)
  return {'acc': accuracy, 'acc+': both, 'score': 100 * accuracy + 100 * both}


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Scores of MME's two halves and of the subtasks that occur.

  Args:
    entries: with 'answer', 'gt_answers' ('Yes' or 'No') and 'image_path', in which a folder is named as the subtask.
    official: makes no difference, the SPHINX script scores as the benchmark's own tool does.

  Returns:
    {'perception', 'cognition': sum over their subtasks, 'total', '<subtask>': 100 (acc + acc+), '<subtask> acc',
    '<subtask> acc+': in [0, 1]}.

  Raises:
    SphinxError: no entries, a path without a subtask, a picture without exactly two questions, another true answer.
  """
  base.some('MME', entries)
  groups = {}
  for entry in entries:
    groups.setdefault(_subtask(entry['image_path']), []).append(entry)
  scores = {name: subtask_score(group) for name, group in groups.items()}
  halves = {
    half: sum(scores[name]['score'] for name in names if name in scores)
    for half, names in SUBTASKS.items()
  }
  result = {**halves, 'total': sum(halves.values())}
  for name, parts in scores.items():
    result |= {name: parts['score'], f'{name} acc': parts['acc'], f'{name} acc+': parts['acc+']}
  return result


def _subtask(image_path):
  names = [name for half in SUBTASKS.values() for name in half]
  found = [part for part in pathlib.PurePosixPath(image_path).parts if part in names]
  if not found:
    raise errors.make(
      f"MME picture '{image_path}'",
      'no folder of a subtask',
      f'one of {", ".join(names)}',
      'keep the folders of the benchmark',
    )
  return found[-1]
