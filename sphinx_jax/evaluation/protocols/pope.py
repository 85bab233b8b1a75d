"""POPE (arXiv 2305.10355), yes/no questions about objects: accuracy, precision, recall, F1."""

import re
from collections.abc import Sequence

from sphinx_jax.core import answers, errors
from sphinx_jax.evaluation.protocols import scoring

_NEGATION = re.compile(r"\b(?:not|none)\b|n['’]t\b", re.IGNORECASE)


def yes_or_no(answer: str) -> str:
  """Returns 'no' if the first sentence has the word No, no or not, else 'yes'.

  An unreadable answer therefore counts as 'yes'. Source: evaluate.py of the benchmark
  (github.com/RUCAIBox/POPE).
  """
  words = answer.split('.')[0].replace(',', '').split()
  return 'no' if {'No', 'no', 'not'} & set(words) else 'yes'


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every question."""
  return [float(_predicted(entry, official) == _truth(entry)) for entry in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'accuracy', 'precision', 'recall', 'f1', 'yes ratio'}, in [0, 1].

  A ratio with a denominator of 0 is 0.

  Args:
    entries: dicts with 'answer' and 'gt_answers' (yes or no).
    official: read answers by the letter of the benchmark's own script (`yes_or_no`), for which
      '**No**' and 'NO' are yes. The SPHINX script does not score POPE.

  Raises:
    SphinxError: there are no entries, or a true answer is neither yes nor no.
  """
  scoring.require_nonempty('POPE', entries)
  predicted = [_predicted(entry, official) == 'yes' for entry in entries]
  truth = [_truth(entry) == 'yes' for entry in entries]
  positives, true_yes = sum(predicted), sum(truth)
  true_positives = sum(p and t for p, t in zip(predicted, truth))
  right = sum(p == t for p, t in zip(predicted, truth))
  return {
    'accuracy': right / len(entries),
    'precision': true_positives / max(positives, 1),
    'recall': true_positives / max(true_yes, 1),
    'f1': 2 * true_positives / max(positives + true_yes, 1),
    'yes ratio': positives / len(entries),
  }


def unread(entries: Sequence[dict]) -> dict[str, int]:
  """Counts the answers that have neither yes nor a negation, and therefore count as yes."""
  return {'neither yes nor no (counted as yes)': sum(_read(e['answer']) is None for e in entries)}


def _predicted(entry: dict, official: bool) -> str:
  if entry.get('skipped'):  # The empty answer of a skipped question must not count as right.
    return 'no' if _truth(entry) == 'yes' else 'yes'
  return (None if official else _read(entry['answer'])) or yes_or_no(entry['answer'])


def _read(answer: str) -> str | None:
  """Returns 'yes' or 'no', also in markup, in capitals and with reasons, or None."""
  negated = _NEGATION.search(answer.split('.')[0])
  return answers.either(answer) or ('no' if negated else None)


def _truth(entry: dict) -> str:
  truth = str(entry['gt_answers']).lower()
  if truth not in ('yes', 'no'):
    raise errors.make('POPE', f"true answer '{truth}'", "'yes' or 'no'", 'check the annotations')
  return truth
