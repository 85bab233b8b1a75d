"""Exact match of short answers (VSR, OCR-VQA, AI2D), up to case, periods and outer white space."""

from collections.abc import Sequence

from sphinx_jax.core import errors
from sphinx_jax.evaluation.protocols import scoring as base


def exact_match(answer: str, annotation: str | Sequence[str], official: bool = False) -> float:
  """1.0 if the answer equals the annotation, or one of them, else 0.0.

  Every period is dropped on both sides, so 'U.S.' equals 'us', and '3.5' equals '35': these benchmarks define no
  normalisation of their own, and this is the one behind SPHINX's published numbers.

  Args:
    answer: what the model says.
    annotation: the true answer, or several of which any will do.
    official: several true answers are an error, as in the SPHINX script, which breaks on them.

  Raises:
    SphinxError: there is no true answer, or with `official` a list of them.
  """
  if official and not isinstance(annotation, str):
    raise errors.make(
      'exact match',
      f'annotation {annotation!r}',
      'one text, the official script breaks on a list',
      'leave official out',
    )
  return float(
    any(_plain(answer) == _plain(truth) for truth in base.listed('exact match', annotation))
  )


def _plain(text):
  return text.replace('.', '').strip().lower()
