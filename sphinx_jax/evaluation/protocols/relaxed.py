"""Relaxed accuracy (ChartQA): a number may miss the true one by 5 %, other text has to be equal."""

from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base

TOLERANCE = 0.05


def relaxed_match(answer: str, annotations: str | Sequence[str], official: bool = False) -> float:
  """1.0 if the answer is within 5 % of the true number, or equals the true text up to case, else 0.0.

  '45%' is the number 0.45. Source: arXiv 2203.10244, section 5.1 ("within 5% of the gold answer").

  Args:
    answer: what the model says.
    annotations: the true answer, or several of which any will do.
    official: the 5 % are of the model's answer, as the SPHINX script passes it for the target; a zero is then
      compared as text.

  Raises:
    SphinxError: there is no true answer.
  """
  answer, truths = answer.strip(), base.listed('relaxed accuracy', annotations)
  if official:
    return float(any(_official(truth, answer) for truth in truths))
  return float(
    any(_same(answer, truth) or _near(_number(answer), _number(truth)) for truth in truths)
  )


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """The score of every entry, in [0, 1]."""
  return [relaxed_match(e['answer'], e['gt_answers'], official) for e in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'relaxed_accuracy': mean} of entries with 'answer' and 'gt_answers', a text or a list of texts."""
  return base.mean('relaxed_accuracy', each(entries, official))


def _official(truth, answer):
  if _number(truth) is None or not _number(answer):
    return _same(answer, truth)
  return _near(_number(truth), _number(answer))


def _near(number, target):
  if number is None or target is None:
    return False
  return abs(number - target) / abs(target) <= TOLERANCE if target else number == 0


def _same(a, b):
  return a.lower() == b.lower()


def _number(text):
  try:
    return float(text.rstrip('%')) / 100 if text.endswith('%') else float(text)
  except ValueError:
    return None
