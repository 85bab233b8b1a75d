"""Accuracy if true answers may be letters of choices (ScienceQA, MMMU, Q-Bench) or other texts."""

import random
import re
from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring
from sphinx_jax.evaluation.protocols.exact_match import exact_match

_OFFICIAL_LETTERS = tuple('ABCDE')
_LETTER = re.compile(
  r'\s*(?:.*\banswer(?: is)?(?::\s*|\s+))?\(?([A-Z])\)?\s*(?:[.:)].*)?', re.DOTALL | re.IGNORECASE
)


def choice_letter(answer: str) -> str | None:
  """Returns the letter that an answer names, or None.

  'C', 'c.', '(C)', 'C. the cat', 'Answer: C' and 'The answer is C.' all give 'C'.
  """
  match = _LETTER.fullmatch(answer)
  return match[1].upper() if match else None


def multiple_choice(answer: str, letter: str) -> float:
  """Returns 1.0 if the answer names this letter, else 0.0. An answer without a letter is wrong."""
  return float(choice_letter(answer) == letter)


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
  rng = random.Random(seed)

  def entry_score(answer: str, truth: str | Sequence[str]) -> float:
    if official and truth in _OFFICIAL_LETTERS:
      return official_choice(answer, truth, rng)
    if not official and isinstance(truth, str) and re.fullmatch('[A-Z]', truth):
      return multiple_choice(answer, truth)
    return exact_match(answer, truth, official)

  return [entry_score(entry['answer'], entry['gt_answers']) for entry in entries]


def score(entries: Sequence[dict], official: bool = False, seed: int = 1) -> dict[str, float]:
  """Returns {'accuracy': mean} over entries.

  A true answer that is a single capital letter (with `official`: from A to E) is the letter of a
  choice. Any other one is compared by `exact_match`.

  Args:
    entries: dicts with 'answer' and 'gt_answers', a text or a list of which any is right.
    official: score as the SPHINX script does: a list of true answers is an error, and an answer
      without a letter counts as a random choice.
    seed: random seed of these choices. The default is the script's.

  Raises:
    SphinxError: there are no entries.
  """
  return scoring.mean('accuracy', per_example_scores(entries, official, seed))
