"""Questions that a dataset asks itself: their wording, choices of answers, truth and score (tasks vqa and ocr).

A question is {'id', 'question', 'answer': str, the one to train, 'answers'?: [str] of all annotators, 'choices'?: [str]
(then 'answer' is the letter of one), 'context'?: str to read first, 'instruction'?: str with '{}' for the task's wording}.
"""

import re
import string
from collections.abc import Mapping, Sequence

import numpy as np

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task as base

# The official evaluation's prompt where a letter is the answer; it has this quote in the word.
OFFICIAL_CHOICE = '{}\nAnswer with the option"s letter from the given choices directly.'
CHOICE_INSTRUCTIONS = (
  OFFICIAL_CHOICE,
  "{}\nAnswer with the option's letter from the given choices directly.",
  '{}\nWhich choice is right? Answer with its letter.',
  '{}\nAnswer with a letter.',
)

# The official evaluation's prompt for VizWiz, where many questions cannot be answered.
UNANSWERABLE_INSTRUCTION = base.SHORT_ANSWER.replace(
  '{}', "{} When the provided information is insufficient, respond with 'Unanswerable'."
)

# VQA's ten annotators answer each for themselves; fewer answers are ways to say the same (DocVQA).
ANNOTATORS = 10
_LETTER = re.compile(r'\s*\(?([A-Z])\)?\s*(?:[.:)].*)?', re.DOTALL | re.IGNORECASE)


def turns(
  questions: Sequence[Mapping],
  rng: np.random.Generator,
  max_turns: int,
  instructions: Sequence[str],
) -> list[base.Turn]:
  """The first max_turns questions in their order, one turn each.

  The first that is a plain question carries one of `instructions` around it and the others follow it without; a question
  with choices or with an instruction of its own always carries its wording.

  Raises:
    BadExample: no questions; one without an answer, or whose answer is not the letter of one of its choices.
  """
  if not questions:
    raise BadExample('nothing to ask', 'the annotation has no questions')
  wording, choice_wording = base.choose(instructions, rng), base.choose(CHOICE_INSTRUCTIONS, rng)
  result = []
  for question in questions[:max_turns]:
    form = question.get('instruction')
    if not form and question.get('choices'):
      form = choice_wording
    elif not form:
      form, wording = wording, '{}'
    # Not str.format: questions and instructions of datasets may hold other braces.
    result.append(
      base.Turn(form.replace('{}', _text(question)), question['answer'].strip(), _truth(question))
    )
  return result


def _text(question: Mapping) -> str:
  """The question with its context and choices, as the official evaluation lays them out."""
  lines = [f'Context:\n{question["context"]}'] if 'context' in question else []
  choices = question.get('choices') or ()
  lines.append(f'Question:\n{question["question"]}' if lines or choices else question['question'])
  if choices:
    lines.append('Choices:')
    lines += [f'{letter}. {choice}' for letter, choice in zip(string.ascii_uppercase, choices)]
  return '\n'.join(lines)


def _truth(question: Mapping) -> dict:
  choices, answer = question.get('choices') or (), question['answer'].strip()
  if len(choices) > len(string.ascii_uppercase):
    raise BadExample('too many choices', f'{len(choices)} in {question["question"]!r:.200}')
  letters = list(string.ascii_uppercase[: len(choices)])
  if choices and answer and answer not in letters:
    raise BadExample('answer is no choice', f'{answer!r:.80}, expected one of {letters}')
  return {
    'answer': answer,
    **{key: question[key] for key in ('id', 'answers', 'choices') if question.get(key)},
  }


def score(answer: str, truth: dict) -> tuple[float, float]:
  """Accuracy, while training and for any dataset; benchmarks have their own in evaluate/protocols.

  With choices, 1 if the answer names the right letter ('B', '(b)', 'B. cup') or is the text of that choice. With the
  answers of ANNOTATORS, min(1, how many of them gave this one / 3), the VQA accuracy without leaving each out once. Else 1
  if it equals one of the answers. All in normal form.
  """
  said, answers = base.normalize(answer), truth.get('answers') or [truth['answer']]
  if truth.get('choices'):
    texts = dict(zip(string.ascii_uppercase, map(base.normalize, truth['choices'])))
    letter = _LETTER.fullmatch(answer)
    return float(
      said == texts[truth['answer']] or bool(letter) and letter[1].upper() == truth['answer']
    ), 1.0
  if len(answers) >= ANNOTATORS:
    return min(1.0, sum(said == base.normalize(other) for other in answers) / 3), 1.0
  return base.any_match(answer, {**truth, 'answers': answers})
