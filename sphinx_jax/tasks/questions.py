"""The questions of a dataset: wording, choices, truth and score (tasks vqa and ocr).

A question is {'id', 'question', 'answer': str, the one to train, 'answers'?: [str] of all
annotators, 'choices'?: [str] (then 'answer' is the letter of one), 'context'?: str to read first,
'instruction'?: str with '{}', used instead of the task's instructions}.
"""

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import answers
from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task

# The official evaluation's prompt for a letter as the answer. The straight quotation mark in
# "option"s" is in the official files, and the released weights were trained with it.
OFFICIAL_CHOICE = '{}\nAnswer with the option"s letter from the given choices directly.'
CHOICE_INSTRUCTIONS = (
  OFFICIAL_CHOICE,
  "{}\nAnswer with the option's letter from the given choices directly.",
  '{}\nWhich choice is right? Answer with its letter.',
  '{}\nAnswer with a letter.',
)

# The official evaluation's prompt for VizWiz, where many questions cannot be answered.
UNANSWERABLE_INSTRUCTION = task.SHORT_ANSWER.replace(
  '{}', "{} When the provided information is insufficient, respond with 'Unanswerable'."
)

# The ten annotators of VQA each give their own answer. Fewer answers are equivalent ones (DocVQA).
ANNOTATORS = 10
_MATCHES_FOR_FULL_SCORE = 3  # Of the annotators' answers, as in the VQA accuracy.


def turns(
  questions: Sequence[Mapping[str, Any]],
  rng: np.random.Generator,
  max_turns: int,
  instructions: Sequence[str],
) -> list[task.Turn]:
  """Returns one turn for each of the first max_turns questions, in their order.

  The first question without choices and without its own instruction has one of `instructions`
  around it. The others of that kind follow it without an instruction. A question with choices or
  with its own instruction always has its instruction.

  Raises:
    BadExample: there are no questions, a question has no answer, or its answer is not the letter of
      one of its choices.
  """
  if not questions:
    raise BadExample('nothing to ask', 'the annotation has no questions')
  plain_instruction = task.choose(instructions, rng)
  choice_instruction = task.choose(CHOICE_INSTRUCTIONS, rng)
  result = []
  for question in questions[:max_turns]:
    if question.get('instruction'):
      instruction = question['instruction']
    elif question.get('choices'):
      instruction = choice_instruction
    else:
      instruction, plain_instruction = plain_instruction, '{}'
    # Not str.format: questions and instructions of datasets may have other braces.
    text = instruction.replace('{}', _format(question))
    result.append(task.Turn(text, question['answer'].strip(), _truth(question)))
  return result


def format_question(
  question: str, choices: Mapping[str, str] | None = None, context: str | None = None
) -> str:
  """Returns a question with its context and choices, formatted like the official evaluation.

  Args:
    question: the question.
    choices: letter -> text. None or empty for a question without choices.
    context: a text to read first, which may be ''. None: no context.
  """
  lines = []
  if context is not None:
    lines += ['Context:', context]
  if choices or context is not None:
    lines.append('Question:')
  lines.append(question)
  if choices:
    lines.append('Choices:')
    lines += [f'{letter}. {text}' for letter, text in choices.items()]
  return '\n'.join(lines)


def official_choice_question(
  question: str, choices: Mapping[str, str], context: str | None = None
) -> str:
  """Returns the whole prompt of a question with choices.

  The format is that of ScienceQA and MMMU in the official annotation files.

  Args:
    question: the question.
    choices: letter -> text.
    context: a text to read first, or None.
  """
  return OFFICIAL_CHOICE.replace('{}', format_question(question, choices, context))


def ask(prompt: str, question: str, choices: Mapping[str, str], hint: str | None = None) -> str:
  """Returns a question with choices in an instruction.

  Args:
    prompt: has '{}' for the whole prompt of `official_choice_question`; or {question}, {hint} (a
      line, or '') and {choices} (a line each).
    question: the question.
    choices: letter -> text.
    hint: a text to read first, or None.
  """
  return prompt.format(
    official_choice_question(question, choices, hint),
    question=question,
    hint=f'Hint: {hint}\n' if hint else '',
    choices='\n'.join(f'{letter}. {text}' for letter, text in choices.items()),
  )


def _format(question: Mapping[str, Any]) -> str:
  choices = dict(zip(string.ascii_uppercase, question.get('choices') or ()))
  return format_question(question['question'], choices, question.get('context'))


def _truth(question: Mapping[str, Any]) -> dict[str, Any]:
  choices, answer = question.get('choices') or (), question['answer'].strip()
  if len(choices) > len(string.ascii_uppercase):
    raise BadExample('too many choices', f'{len(choices)} in {question["question"]!r:.200}')
  letters = list(string.ascii_uppercase[: len(choices)])
  if choices and answer and answer not in letters:
    raise BadExample('answer is no choice', f'{answer!r:.80}, expected one of {letters}')
  truth = {'answer': answer}
  truth.update({key: question[key] for key in ('id', 'answers', 'choices') if question.get(key)})
  return truth


def score(answer: str, truth: Mapping[str, Any]) -> tuple[float, float]:
  """Accuracy of an answer during training, for any dataset.

  With choices it is 1 if the answer names the right one (core/answers.py). With the answers of
  ANNOTATORS it is min(1, number of equal answers / 3): the VQA accuracy, without the mean over
  leaving out one annotator. Otherwise it is 1 if the answer equals one of the accepted ones, where
  yes and no may have reasons. Both compare normalized texts without markup. Benchmarks have their
  own scores in evaluation/protocols.
  """
  if truth.get('choices'):
    choices = dict(zip(string.ascii_uppercase, truth['choices']))
    return float(answers.choice(answer, choices) == truth['answer']), 1.0
  accepted = truth.get('answers') or [truth['answer']]
  if len(accepted) >= ANNOTATORS:
    normalized, *others = (task.normalize(answers.unwrapped(text)) for text in (answer, *accepted))
    matches = others.count(normalized)
    return min(1.0, matches / _MATCHES_FOR_FULL_SCORE), 1.0
  if task.normalize(accepted[0]) in ('yes', 'no'):
    answer = answers.either(answer) or answer
  return task.any_match(answer, {'answers': accepted})
