"""CIDEr-D (arXiv 1411.5726) and corpus BLEU of captions, with the choices of the COCO caption evaluation.

The words are cut as in the Penn Treebank, lower case and without punctuation, by a few lines of ours: the official
tokenizer is a Java program. Usual captions are cut alike (tests/golden/eval/caption.json), e-mail addresses are not.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base

ORDER = 4  # Longest n-gram.
SIGMA = 6.0  # Of CIDEr-D's penalty on the difference of lengths, in words.

_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_TWO_WORDS = re.compile(r'\b(can|gon|wan|got)(not|na|ta)\b')
_BRACKETS = {
  '(': ' -lrb- ',
  ')': ' -rrb- ',
  '[': ' -lsb- ',
  ']': ' -rsb- ',
  '{': ' -lcb- ',
  '}': ' -rcb- ',
}
_TOKEN = re.compile(
  r"-[lr][rsc]b-|n't\b|'(?:s|re|ve|ll|d|m)\b|(?:mr|mrs|ms|dr|st)\.|(?:[a-z]\.){2,}|\d+(?:[.,:/]\d+)+(?:-\w+)*|"
  r"\w+(?:(?:[-/&]|(?<=[a-z])')\w+)*|[^\w\s.,:;?!'\"`“”‘()\[\]{}…–—-]"
)

Grams = dict[tuple[str, ...], float]


def tokens(text: str) -> list[str]:
  """Words in lower case: "The man's hat isn't red." -> the man 's hat is n't red."""
  text = text.lower().replace('’', "'")
  for bracket, name in _BRACKETS.items():
    text = text.replace(bracket, name)
  return _TOKEN.findall(_TWO_WORDS.sub(r'\1 \2', _CONTRACTION.sub(r' \1', text)))


def ngrams(words: Sequence[str]) -> Counter:
  """How often each sequence of one to four words occurs."""
  return Counter(
    tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1)
  )


def bleu(answers: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
  """Corpus BLEU-1 to BLEU-4 in [0, 1], the length compared with that of the nearest reference.

  Args:
    answers: words of each answer.
    references: words of all the true captions of each.
  """
  correct, total, length, wanted = [0] * ORDER, [0] * ORDER, 0, 0
  for words, truths in zip(answers, references, strict=True):
    most = Counter()
    for truth in truths:
      most |= ngrams(truth)
    for gram, count in ngrams(words).items():
      correct[len(gram) - 1] += min(count, most[gram])
      total[len(gram) - 1] += count
    length += len(words)
    wanted += min((abs(len(truth) - len(words)), len(truth)) for truth in truths)[1]
  brevity = math.exp(min(0.0, 1 - wanted / length)) if length else 0.0
  result, product = [], 1.0
  for n in range(ORDER):
    product *= correct[n] / total[n] if total[n] else 0.0
    result.append(brevity * product ** (1 / (n + 1)))
  return result


def cider(answers: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
  """CIDEr-D of every answer, from 0 to 10; how telling an n-gram is comes from all references together.

  Args:
    answers: words of each answer.
    references: words of all the true captions of each.
  """
  counted = [[ngrams(truth) for truth in truths] for truths in references]
  pictures = Counter(
    gram for grams in counted for gram in set().union(*grams)
  )  # that have this n-gram
  everything = math.log(max(len(references), 1))

  def vectors(grams):
    """For each n the weighted n-grams, and their norm."""
    parts: list[Grams] = [{} for _ in range(ORDER)]
    for gram, count in grams.items():
      parts[len(gram) - 1][gram] = count * (everything - math.log(max(pictures[gram], 1)))
    return [(part, math.sqrt(sum(weight**2 for weight in part.values()))) for part in parts]

  scores = []
  for words, truths, grams in zip(answers, references, counted, strict=True):
    said = vectors(ngrams(words))
    similarities = [
      _similarity(said, vectors(gram))
      * math.exp(-((len(words) - len(truth)) ** 2) / (2 * SIGMA**2))
      for truth, gram in zip(truths, grams)
    ]
    scores.append(10 * sum(similarities) / len(similarities))
  return scores


def _similarity(said, truth):
  """Mean over n of the cosine, in which no n-gram of the answer weighs more than in the reference."""
  cosines = []
  for (weights, norm), (true_weights, true_norm) in zip(said, truth):
    shared = sum(
      min(weight, true_weights[gram]) * true_weights[gram]
      for gram, weight in weights.items()
      if gram in true_weights
    )
    cosines.append(shared / (norm * true_norm) if norm and true_norm else 0.0)
  return sum(cosines) / ORDER


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """A tenth of every caption's CIDEr-D, so that it lies in [0, 1]."""
  del official
  return [value / 10 for value in cider(*_words(entries))]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'CIDEr': mean CIDEr-D (0 to 10, often given times 100), 'BLEU-1' ... 'BLEU-4': in [0, 1]}.

  Args:
    entries: one a picture, with 'answer' and 'gt_answers', the list of its true captions.
    official: makes no difference, the SPHINX script has no captions.

  Raises:
    SphinxError: no entries, or one without a true caption.
  """
  del official
  base.some('captions', entries)
  words = _words(entries)
  return base.mean('CIDEr', cider(*words)) | {
    f'BLEU-{n}': value for n, value in enumerate(bleu(*words), 1)
  }


def _words(entries):
  return (
    [tokens(entry['answer']) for entry in entries],
    [[tokens(text) for text in base.listed('captions', entry['gt_answers'])] for entry in entries],
  )
