"""Relaxed accuracy (ChartQA): a number may be off by 5 %, any other text has to be equal."""

from collections.abc import Sequence

from sphinx_jax.core import answers
from sphinx_jax.evaluation.protocols import scoring

TOLERANCE = 0.05


def relaxed_match(answer: str, annotations: str | Sequence[str], official: bool = False) -> float:
  """Returns 1.0 if the answer is within 5 % of the true number or equals the true text, else 0.0.

  Case does not count. '45%' is the number 0.45. Source: arXiv 2203.10244, section 5.1 ("within 5%
  of the gold answer"). The number of an answer may have a unit, a currency and separators of
  thousands. A unit that scales it counts or not, because charts leave units out: '45%' also is 45,
  and '3 million' also is 3.

  Args:
    answer: the model's answer.
    annotations: the true answer, or several of which any is right.
    official: take the 5 % of the model's answer, because the SPHINX script passes it as the target.
      A zero is then compared as text.

  Raises:
    SphinxError: there is no true answer.
  """
  truths = scoring.as_list('relaxed accuracy', annotations)
  if official:
    return float(any(_official_match(truth, answer.strip()) for truth in truths))
  texts = [form.strip() for form in answers.forms(answer)]
  return float(any(_matches(text, truth) for text in texts for truth in truths))


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every entry."""
  return [relaxed_match(entry['answer'], entry['gt_answers'], official) for entry in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'relaxed_accuracy': mean} over entries.

  Args:
    entries: dicts with 'answer' and 'gt_answers', a text or a list of texts.
    official: see `relaxed_match`.

  Raises:
    SphinxError: there are no entries, or one has no true answer.
  """
  return scoring.mean('relaxed_accuracy', per_example_scores(entries, official))


def _official_match(truth: str, answer: str) -> bool:
  if _number(truth) is None or not _number(answer):
    return _same(answer, truth)
  return _near(_number(truth), _number(answer))


def _matches(answer: str, truth: str) -> bool:
  if _same(answer, truth) or _same(answer.rstrip('.'), truth):
    return True
  target = next(iter(answers.numbers(truth)), None)
  return any(_near(number, target) for number in answers.numbers(answer))


def _near(number: float | None, target: float | None) -> bool:
  if number is None or target is None:
    return False
  if not target:
    return number == 0
  return abs(number - target) / abs(target) <= TOLERANCE


def _same(a: str, b: str) -> bool:
  return a.lower() == b.lower()


def _number(text: str) -> float | None:
  try:
    return float(text.rstrip('%')) / 100 if text.endswith('%') else float(text)
  except ValueError:
    return None
