"""GQA accuracy: exact match, where a model that speaks in sentences is taken at the short answer inside."""

import re
from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base
from sphinx_jax.evaluation.protocols.exact_match import exact_match


def short_answer(answer: str) -> str:
  """'It is on the left of the car.' -> 'left': what follows is, are, a, an, the and precedes of, in the first clause."""
  short = re.split('[.,!]', answer.strip(), maxsplit=1)[0].lower()
  for word in ('is', 'are', 'a', 'an', 'the'):
    short = re.split(rf'\b{word} ', short, maxsplit=1)[-1]
  return re.split(r' of\b', short, maxsplit=1)[0].strip()


def gqa_match(answer: str, annotation: str, official: bool = False) -> float:
  """1.0 if the answer, or the short answer inside it, equals the annotation, else 0.0.

  Args:
    answer: what the model says.
    annotation: the true short answer.
    official: only the answer as it stands; the SPHINX script cleans up after it has made the copy that it scores.
  """
  whole = exact_match(answer, annotation, official)
  return whole if official else max(whole, exact_match(short_answer(answer), annotation))


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """The score of every entry, in [0, 1]."""
  return [gqa_match(e['answer'], e['gt_answers'], official) for e in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'gqa_accuracy': mean} of entries with 'answer' and 'gt_answers', a text."""
  return base.mean('gqa_accuracy', each(entries, official))
