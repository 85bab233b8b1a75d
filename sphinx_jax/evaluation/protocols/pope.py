"""POPE (arXiv 2305.10355): is this thing in the picture? Accuracy; precision, recall, F1 of 'yes'; how often it is said."""

from collections.abc import Sequence

from sphinx_jax.core import errors
from sphinx_jax.evaluation.protocols import scoring as base


def yes_or_no(answer: str) -> str:
  """'no' where the first sentence has the word No, no or not, else 'yes', which thus is what an unreadable answer counts as.

  Source: evaluate.py of the benchmark (github.com/RUCAIBox/POPE).
  """
  words = answer.split('.')[0].replace(',', '').split()
  return 'no' if {'No', 'no', 'not'} & set(words) else 'yes'


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """1.0 or 0.0 for every question."""
  del official
  return [float(_said(entry) == _truth(entry)) for entry in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'accuracy', 'precision', 'recall', 'f1', 'yes ratio'} in [0, 1] of entries with 'answer' and 'gt_answers' (yes or no).

  A ratio of which nothing was counted is 0. `official` makes no difference: the SPHINX script has no POPE, and this is the
  benchmark's own. Raises SphinxError without entries or with another true answer.
  """
  del official
  base.some('POPE', entries)
  pairs = [(_said(entry) == 'yes', _truth(entry) == 'yes') for entry in entries]
  said, true, both = (sum(yes) for yes in zip(*((*pair, all(pair)) for pair in pairs)))
  return {
    'accuracy': sum(said_yes == true_yes for said_yes, true_yes in pairs) / len(pairs),
    'precision': both / max(said, 1),
    'recall': both / max(true, 1),
    'f1': 2 * both / max(said + true, 1),
    'yes ratio': said / len(pairs),
  }


def _said(entry):
  if entry.get('skipped'):  # A question that could not be asked must not be right by being empty.
    return 'no' if _truth(entry) == 'yes' else 'yes'
  return yes_or_no(entry['answer'])


def _truth(entry):
  truth = entry['gt_answers'].lower()
  if truth not in ('yes', 'no'):
    raise errors.make('POPE', f"true answer '{truth}'", "'yes' or 'no'", 'check the annotations')
  return truth
