"""What the protocols share: one true answer or several, and the mean over entries."""

from collections.abc import Iterable, Sequence

from sphinx_jax.core import errors


def listed(who: str, annotation: str | Sequence[str]) -> list[str]:
  """The true answers as a list. Raises SphinxError when there is none."""
  answers = [annotation] if isinstance(annotation, str) else list(annotation)
  if not answers:
    raise errors.make(who, 'no true answer', 'a text or a list of texts', 'check the annotations')
  return answers


def some(who: str, entries: Sequence) -> None:
  """Raises SphinxError when there is nothing to score."""
  if not entries:
    raise errors.make(who, 'no entries', 'at least one', 'check the predictions')


def mean(who: str, scores: Iterable[float]) -> dict[str, float]:
  """{who: the mean of the scores}. Raises SphinxError when there is none."""
  scores = list(scores)
  some(who, scores)
  return {who: sum(scores) / len(scores)}
