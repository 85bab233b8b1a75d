"""ANLS (DocVQA, InfographicVQA, ST-VQA): normalised edit similarity to the nearest true answer, 0 below one half."""

from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base

THRESHOLD = 0.5


def levenshtein(a: Sequence, b: Sequence) -> int:
  """Least number of insertions, deletions and substitutions that turn a into b."""
  row = list(range(len(b) + 1))
  for i, left in enumerate(a):
    above, row = row, [i + 1]
    for j, right in enumerate(b):
      row.append(min(above[j] + (left != right), above[j + 1] + 1, row[j] + 1))
  return row[-1]


def anls(answer: str, annotations: str | Sequence[str], official: bool = False) -> float:
  """1 - edit distance / longer length, the best over the true answers; 0 when that is below 0.5.

  Case and the amount of white space do not count. A similarity of exactly 0.5 stays, as on the benchmark's server
  (the formula of arXiv 1905.13648 would drop it).

  Args:
    answer: what the model says.
    annotations: the true answers, any of which will do.
    official: the length is that of the raw texts in upper case, as in the SPHINX script; the definition takes both
      distance and length from the same texts.

  Raises:
    SphinxError: there is no true answer.
  """
  distances = []
  for truth in base.listed('anls', annotations):
    a, b = (' '.join(text.lower().split()) for text in (answer, truth))
    longest = max(len(answer.upper()), len(truth.upper())) if official else max(len(a), len(b))
    distances.append(levenshtein(a, b) / longest if longest else 0.0)
  similarity = 1 - min(distances)
  return similarity if similarity >= THRESHOLD else 0.0


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """The score of every entry, in [0, 1]."""
  return [anls(e['answer'], e['gt_answers'], official) for e in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'anls': mean} of entries with 'answer' and 'gt_answers', a text or a list of texts."""
  return base.mean('anls', each(entries, official))
