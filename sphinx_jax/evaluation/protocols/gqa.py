"""GQA accuracy: exact match of the answer, or of the short answer inside a sentence."""

import re
from collections.abc import Sequence

from sphinx_jax.core import answers
from sphinx_jax.evaluation.protocols import scoring
from sphinx_jax.evaluation.protocols.exact_match import exact_match


def short_answer(answer: str) -> str:
  """Extracts the short answer from a sentence: 'It is on the left of the car.' -> 'left'.

  It is what follows is, are, a, an, the and precedes of, in the first clause.
  """
  short = re.split('[.,!]', answer.strip(), maxsplit=1)[0].lower()
  for word in ('is', 'are', 'a', 'an', 'the'):
    short = re.split(rf'\b{word} ', short, maxsplit=1)[-1]
  return re.split(r' of\b', short, maxsplit=1)[0].strip()


def gqa_match(answer: str, annotation: str, official: bool = False) -> float:
  """Returns 1.0 if the answer, or the short answer inside it, equals the annotation, else 0.0.

  A true yes or no may have reasons after it.

  Args:
    answer: the model's answer.
    annotation: the true short answer.
    official: compare only the whole answer. The SPHINX script extracts the short answer too late:
      it scores a copy that it made before.
  """
  if official:
    return exact_match(answer, annotation, official)
  if annotation in ('yes', 'no'):
    return float(answers.either(answer) == annotation)
  answer = answers.unwrapped(answer)
  return max(exact_match(answer, annotation), exact_match(short_answer(answer), annotation))


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every entry."""
  return [gqa_match(entry['answer'], entry['gt_answers'], official) for entry in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'gqa_accuracy': mean} over entries.

  Args:
    entries: dicts with 'answer' and 'gt_answers', a text.
    official: see `gqa_match`.

  Raises:
    SphinxError: there are no entries.
  """
  return scoring.mean('gqa_accuracy', per_example_scores(entries, official))
