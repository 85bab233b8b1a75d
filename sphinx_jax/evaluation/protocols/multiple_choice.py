"""Accuracy where the true answer may be the letter of a choice (ScienceQA, MMMU, Q-Bench) or a text like any other."""

import random
import re
from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base
from sphinx_jax.evaluation.protocols.exact_match import exact_match

_OFFICIAL_LETTERS = tuple('ABCDE')
_LETTER = re.compile(
  r'\s*(?:.*\banswer(?: is)?(?::\s*|\s+))?\(?([A-Z])\)?\s*(?:[.:)].*)?', re.DOTALL | re.IGNORECASE
)


def choice_letter(answer: str) -> str | None:
  """The letter an answer names: 'C', 'c.', '(C)', 'C. the cat', 'Answer: C', 'The answer is C.' -> 'C'; else None."""
  match = _LETTER.fullmatch(answer)
  return match[1].upper() if match else None


def multiple_choice(answer: str, letter: str) -> float:
  """1.0 if the answer names this letter, else 0.0; no letter is a wrong answer."""
  return float(choice_letter(answer) == letter)


def official_choice(answer: str, letter: str, rng: random.Random) -> float:
  """The same as the SPHINX script has it: what stands before the first period, or else a random letter from A to E."""
  said = answer.split('.')[0]
  if said not in _OFFICIAL_LETTERS:
    said = rng.choice(_OFFICIAL_LETTERS)
  return exact_match(said, letter)


def each(entries: Sequence[dict], official: bool = False, seed: int = 1) -> list[float]:
  """1.0 or 0.0 for every entry, see `score`."""
  rng = random.Random(seed)

  def one(answer, truth):
    if official and truth in _OFFICIAL_LETTERS:
      return official_choice(answer, truth, rng)
    if not official and isinstance(truth, str) and re.fullmatch('[A-Z]', truth):
      return multiple_choice(answer, truth)
    return exact_match(answer, truth, official)

  return [one(e['answer'], e['gt_answers']) for e in entries]


def score(entries: Sequence[dict], official: bool = False, seed: int = 1) -> dict[str, float]:
  """{'accuracy': mean} of entries with 'answer' and 'gt_answers'.

  A true answer that is a single capital letter (officially: from A to E) is the letter of a choice, any other one is
  compared by `exact_match`.

  Args:
    entries: 'gt_answers' is a text, or a list of which any will do.
    official: as the SPHINX script scores; a list is an error there, and an answer without a letter a random choice.
    seed: of these choices; the script's default.
  """
  return base.mean('accuracy', each(entries, official, seed))
