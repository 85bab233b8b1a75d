"""Accuracy if true answers may be letters of choices (ScienceQA, MMMU, Q-Bench) or other texts."""

import random
import re
from collections.abc import Mapping, Sequence

from sphinx_jax.core import answers
from sphinx_jax.evaluation.protocols import scoring
from sphinx_jax.evaluation.protocols.exact_match import exact_match

_OFFICIAL_LETTERS = tuple('ABCDE')
_CHOICES = 'Choices:\n'  # As in questions.official_choice_question.
_CHOICE = re.compile(r'^([A-Z])\. (.*)$', re.MULTILINE)
# 'The capacitance is 1.06 uF.' MMMU's own tool, too, reads what is after the last of these.
_SENTENCE = re.compile(r'\b(?:is|are|equals)\b|[=≈]')
# True answers of which an answer may give reasons.
_PAIRS = (('yes', 'no'), ('true', 'false'))


def choices_of(question: str) -> dict[str, str]:
  """Returns the choices in the text of a question, {letter: text}, or {} if it has none."""
  _, heading, listed = question.rpartition(_CHOICES)
  return dict(_CHOICE.findall(listed)) if heading else {}


def unread(entries: Sequence[Mapping]) -> dict[str, int]:
  """Counts the answers that should name a choice, and do not name exactly one."""
  named = [
    answers.choice(entry['answer'], _choices(entry)) for entry in entries if _lettered(entry)
  ]
  return {'without one choice': named.count(None)}


def _lettered(entry: Mapping) -> bool:
  truth = entry['gt_answers']
  return isinstance(truth, str) and re.fullmatch('[A-Z]', truth) is not None


def _choices(entry: Mapping) -> dict[str, str]:
  return entry.get('choices') or choices_of(entry.get('question', ''))


def _match(entry: Mapping) -> float:
  """Returns 1.0 or 0.0 by the definition, see `score`."""
  answer, truth = entry['answer'], entry['gt_answers']
  if _lettered(entry):
    return float(answers.choice(answer, _choices(entry)) == truth)
  truths = scoring.as_list('accuracy', truth)
  words = {answers.either(answer, pair) for pair in _PAIRS} - {None}
  forms = [*answers.forms(answer), _SENTENCE.split(answers.unwrapped(answer))[-1]]
  values = [number for form in forms for number in answers.numbers(form)]
  same = any(
    text.lower() in words or any(value in answers.numbers(text)[:1] for value in values)
    for text in truths
  )
  return float(same or any(exact_match(form, truths) for form in forms))


def official_choice(answer: str, letter: str, rng: random.Random) -> float:
  """Returns 1.0 or 0.0 as the SPHINX script does.

  The script compares the text before the first period. If that is no letter from A to E, it
  compares a random one of these letters.
  """
  choice = answer.split('.')[0]
  if choice not in _OFFICIAL_LETTERS:
    choice = rng.choice(_OFFICIAL_LETTERS)
  return exact_match(choice, letter)


def per_example_scores(
  entries: Sequence[dict], official: bool = False, seed: int = 1
) -> list[float]:
  """Returns 1.0 or 0.0 for every entry, see `score`."""
  if not official:
    return [_match(entry) for entry in entries]
  rng = random.Random(seed)

  def entry_score(answer: str, truth: str | Sequence[str]) -> float:
    if truth in _OFFICIAL_LETTERS:
      return official_choice(answer, truth, rng)
    return exact_match(answer, truth, official)

  return [entry_score(entry['answer'], entry['gt_answers']) for entry in entries]


def score(entries: Sequence[dict], official: bool = False, seed: int = 1) -> dict[str, float]:
  """Returns {'accuracy': mean} over entries.

  A true answer that is a single capital letter (with `official`: from A to E) is the letter of a
  choice. Any other one is compared by `exact_match`. By default, equal numbers are equal answers,
  yes, no, true and false may have reasons, and an answer may be a sentence ('It is 5 m.').

  Args:
    entries: dicts with 'answer' and 'gt_answers', a text or a list of which any is right. The texts
      of choices are in 'choices' ({letter: text}) or in 'question', if it has them.
    official: score as the SPHINX script does: a list of true answers is an error, and an answer
      without a letter counts as a random choice.
    seed: random seed of these choices. The default is the script's.

  Raises:
    SphinxError: there are no entries.
  """
  return scoring.mean('accuracy', per_example_scores(entries, official, seed))
