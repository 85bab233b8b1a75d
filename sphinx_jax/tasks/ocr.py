"""Questions about text in the image: those of a dataset (OCR-VQA, DocVQA, ...), or to read a word.

If a scene has several words, the question names the word's color or its place.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sphinx_jax.tasks import questions, task

INSTRUCTIONS = (
  task.SHORT_ANSWER,
  '{} Answer in a word.',
  '{} Short answer.',
  '{}',
)

_ONLY_WORD = (
  'What word is written here?',
  'What does the text say?',
  'Which word is this?',
  'Read the word.',
)
_BY_COLOR = ('What is the {} word?', 'What does the {} text say?', 'Read the {} word.')
_BY_PLACE = ('What is the word {}?', 'What does the text {} say?', 'Read the word {}.')
_PLACES = {
  'left of': 'on the left',
  'right of': 'on the right',
  'above': 'at the top',
  'below': 'at the bottom',
}


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns the first max_turns questions of the dataset, or as many about words."""
  if 'questions' in annotation:
    return questions.turns(annotation['questions'], rng, max_turns, INSTRUCTIONS)
  asked = task.sample(scene_questions(annotation['words'], rng), rng, max_turns, 'words to ask for')
  return task.short_answer_turns(asked, rng, INSTRUCTIONS)


def scene_questions(
  words: Sequence[dict[str, Any]], rng: np.random.Generator
) -> list[tuple[str, str]]:
  """Returns (question, answer) for every word that can be told from the others."""
  if len(words) == 1:
    return [(task.choose(_ONLY_WORD, rng), words[0]['text'])]
  result = []
  for word in words:
    candidates = _unambiguous_questions(word, words, rng)
    if candidates:
      result.append((task.choose(candidates, rng), word['text']))
  return result


def _unambiguous_questions(
  word: dict[str, Any], words: Sequence[dict[str, Any]], rng: np.random.Generator
) -> list[str]:
  """The questions that only this word answers.

  They name its color if no other word has it, and its place if it is beyond all other words.
  """
  others = [other for other in words if other is not word]
  candidates = []
  if word.get('color') and all(other.get('color') != word['color'] for other in others):
    candidates.append(task.choose(_BY_COLOR, rng).format(word['color']))
  directions = {task.direction(word, other) for other in others}
  if len(directions) == 1 and None not in directions:
    (direction,) = directions
    candidates.append(task.choose(_BY_PLACE, rng).format(_PLACES[direction]))
  return candidates


TASK = task.Task('ocr', 'accuracy', INSTRUCTIONS, turns, questions.score, mirrors=False)
