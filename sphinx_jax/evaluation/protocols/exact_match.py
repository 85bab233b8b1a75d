"""Exact match of short answers (VSR, OCR-VQA, AI2D), up to case, periods and outer white space."""

import re
from collections.abc import Sequence

from sphinx_jax.core import answers, errors
from sphinx_jax.evaluation.protocols import scoring

_PERIOD = re.compile(r'\.(?!\d)')


def exact_match(answer: str, annotation: str | Sequence[str], official: bool = False) -> float:
  """Returns 1.0 if the answer equals the annotation, or one of them, else 0.0.

  Periods are dropped on both sides, so 'U.S.' equals 'us', except before a digit. Markup around
  the answer and 'The answer is' before it do not count.

  Args:
    answer: the model's answer.
    annotation: the true answer, or several of which any is right.
    official: compare like the SPHINX script. Every period is dropped, so '3.5' equals '35', and a
      list of true answers, on which the script crashes, is rejected.

  Raises:
    SphinxError: there is no true answer, or `official` is set and there is a list of them.
  """
  if official and not isinstance(annotation, str):
    raise errors.make(
      'exact match',
      f'annotation {annotation!r}',
      'one text (the official script crashes on a list)',
      'score without official=True',
    )
  truths = scoring.as_list('exact match', annotation)
  if official:
    return float(any(_official(answer) == _official(truth) for truth in truths))
  texts = {_plain(form) for form in answers.forms(answer)}
  return float(any(_plain(truth) in texts for truth in truths))


def _plain(text: str) -> str:
  return _PERIOD.sub('', text).strip().lower()


def _official(text: str) -> str:
  return text.replace('.', '').strip().lower()
