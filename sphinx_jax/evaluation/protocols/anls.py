"""ANLS (DocVQA, InfographicVQA, ST-VQA): normalized edit similarity to the nearest true answer."""

from collections.abc import Sequence

from sphinx_jax.core import answers
from sphinx_jax.evaluation.protocols import scoring

THRESHOLD = 0.5


def levenshtein(a: Sequence, b: Sequence) -> int:
  """Returns the least number of insertions, deletions and substitutions that turn a into b."""
  row = list(range(len(b) + 1))
  for i, left in enumerate(a):
    above, row = row, [i + 1]
    for j, right in enumerate(b):
      row.append(min(above[j] + (left != right), above[j + 1] + 1, row[j] + 1))
  return row[-1]


def anls(answer: str, annotations: str | Sequence[str], official: bool = False) -> float:
  """Returns 1 - edit distance / longer length, the best over the true answers.

  A result below 0.5 becomes 0. Exactly 0.5 is kept, as on the benchmark's server (the formula of
  arXiv 1905.13648 would drop it). Case and the amount of white space do not count.

  Args:
    answer: the model's answer.
    annotations: the true answers, any of which is right.
    official: take the length from the raw texts in upper case, as the SPHINX script does. The
      definition takes distance and length from the same texts.

  Raises:
    SphinxError: there is no true answer.
  """
  distances = []
  for truth in scoring.as_list('anls', annotations):
    a, b = (' '.join(text.lower().split()) for text in (answer, truth))
    if official:
      longest = max(len(answer.upper()), len(truth.upper()))
    else:
      longest = max(len(a), len(b))
    distances.append(levenshtein(a, b) / longest if longest else 0.0)
  similarity = 1 - min(distances)
  return similarity if similarity >= THRESHOLD else 0.0


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns the ANLS of every entry, in [0, 1]."""
  return [
    max(
      anls(text, entry['gt_answers'], official)
      for text in (entry['answer'], *([] if official else [answers.unwrapped(entry['answer'])]))
    )
    for entry in entries
  ]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'anls': mean} over entries.

  Args:
    entries: dicts with 'answer' and 'gt_answers', which is a text or a list of texts.
    official: see `anls`.

  Raises:
    SphinxError: there are no entries, or one has no true answer.
  """
  return scoring.mean('anls', per_example_scores(entries, official))
