"""MME score (arXiv 2306.13394): accuracy of yes/no questions plus accuracy of question pairs.

Every image has two questions. A pair is right if both answers are.
"""

import pathlib
from collections.abc import Sequence

from sphinx_jax.core import answers, errors
from sphinx_jax.evaluation.protocols import scoring

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
  """Returns 'yes' or 'no' if the first four characters contain it ('yes' first), else 'other'.

  This is the rule of the benchmark's own tool.
  """
  start = answer.lower()[:4]
  return next((word for word in ('yes', 'no') if word in start), 'other')


def _answered(entry: dict, official: bool = False) -> str:
  """Returns 'yes', 'no' or 'other'. By default, the word may also stand inside a sentence."""
  word = None if official else answers.either(entry['answer'])
  return word or yes_or_no(entry['answer'])


def unread(entries: Sequence[dict]) -> dict[str, int]:
  """Counts the answers that state neither yes nor no. 'Not sure' begins like no."""
  return {'neither yes nor no': sum(answers.either(entry['answer']) is None for entry in entries)}


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every question."""
  return [float(_answered(entry, official) == entry['gt_answers'].lower()) for entry in entries]


def subtask_score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'acc', 'acc+': in [0, 1], 'score': 100 (acc + acc+)} of one subtask's entries.

  Raises:
    SphinxError: see `score`.
  """
  images: dict[str, list[bool]] = {}
  for entry in entries:
    truth = str(entry['gt_answers']).lower()
    if truth not in ('yes', 'no'):
      raise errors.make(
        f"MME question about '{entry['image_path']}'",
        f"true answer '{truth}'",
        "'yes' or 'no'",
        'check the annotations',
      )
    images.setdefault(entry['image_path'], []).append(_answered(entry, official) == truth)
  for path, right in images.items():
    if len(right) != 2:
      raise errors.make(
        f"MME image '{path}'", f'{len(right)} questions', '2', 'score both questions of an image'
      )
  accuracy = sum(map(sum, images.values())) / (2 * len(images))
  pair_accuracy = sum(map(all, images.values())) / len(images)
  return {
    'acc': accuracy,
    'acc+': pair_accuracy,
    'score': 100 * accuracy + 100 * pair_accuracy,
  }


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns the scores of MME's two halves and of the subtasks that occur.

  Args:
    entries: dicts with 'answer', 'gt_answers' ('Yes' or 'No') and 'image_path', in which a folder
      has the name of the subtask.
    official: read answers like the SPHINX script, which does it as the benchmark's own tool
      (`yes_or_no`).

  Returns:
    {'perception', 'cognition': sum over their subtasks, 'total', '<subtask>': 100 (acc + acc+),
    '<subtask> acc', '<subtask> acc+': in [0, 1]}.

  Raises:
    SphinxError: there are no entries, a path is without a subtask, an image has other than two
      questions, or a true answer is neither yes nor no.
  """
  scoring.require_nonempty('MME', entries)
  groups: dict[str, list[dict]] = {}
  for entry in entries:
    groups.setdefault(_subtask(entry['image_path']), []).append(entry)
  scores = {name: subtask_score(group, official) for name, group in groups.items()}
  halves = {
    half: sum(scores[name]['score'] for name in names if name in scores)
    for half, names in SUBTASKS.items()
  }
  result = {**halves, 'total': sum(halves.values())}
  for name, parts in scores.items():
    result |= {name: parts['score'], f'{name} acc': parts['acc'], f'{name} acc+': parts['acc+']}
  return result


def _subtask(image_path: str) -> str:
  names = [name for half in SUBTASKS.values() for name in half]
  matches = [part for part in pathlib.PurePosixPath(image_path).parts if part in names]
  if not matches:
    raise errors.make(
      f"MME image '{image_path}'",
      'no folder of a subtask',
      f'one of {", ".join(names)}',
      'keep the folders of the benchmark',
    )
  return matches[-1]
