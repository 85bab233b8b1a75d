"""Exact match of short answers (VSR, OCR-VQA, AI2D), up to case, periods and outer white space."""

from collections.abc import Sequence

from sphinx_jax.core import errors
from sphinx_jax.evaluation.protocols import scoring


def exact_match(answer: str, annotation: str | Sequence[str], official: bool = False) -> float:
  """Returns 1.0 if the answer equals the annotation, or one of them, else 0.0.

  Every period is dropped on both sides, so 'U.S.' equals 'us', and '3.5' equals '35'. These
  benchmarks define no normalization of their own. This one is behind SPHINX's published numbers.

  Args:
    answer: the model's answer.
    annotation: the true answer, or several of which any is right.
    official: reject a list of true answers, on which the SPHINX script crashes.

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
  return float(any(_plain(answer) == _plain(truth) for truth in truths))


def _plain(text: str) -> str:
  return text.replace('.', '').strip().lower()
