"""Helpers that all protocols share."""

from collections.abc import Iterable, Sequence

from sphinx_jax.core import errors


def as_list(who: str, annotation: str | Sequence[str]) -> list[str]:
  """Returns the true answers as a list, also when there is a single one.

  Raises:
    SphinxError: there is no true answer.
  """
  answers = [annotation] if isinstance(annotation, str) else list(annotation)
  if not answers or not all(isinstance(answer, str | Sequence) for answer in answers):
    got = f'true answers {answers!r:.80}' if answers else 'no true answer'
    raise errors.make(who, got, 'a text or a list of texts', 'check the annotations')
  return answers


def require_nonempty(who: str, entries: Sequence) -> None:
  """Raises SphinxError if there is nothing to score."""
  if not entries:
    raise errors.make(who, 'no entries', 'at least one', 'check the predictions')


def mean(name: str, scores: Iterable[float]) -> dict[str, float]:
  """Returns {name: mean of the scores}.

  Raises:
    SphinxError: there are no scores.
  """
  scores = list(scores)
  require_nonempty(name, scores)
  return {name: sum(scores) / len(scores)}
