"""CIDEr-D (arXiv 1411.5726) and corpus BLEU of captions, as in the COCO caption evaluation.

The tokenization is an approximation of the Penn Treebank tokenizer, which is a Java program: lower
case, no punctuation. Common captions are tokenized identically (tests/golden/eval/caption.json),
e-mail addresses are not.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from sphinx_jax.evaluation.protocols import scoring

ORDER = 4  # Length of the longest n-gram.
SIGMA = 6.0  # Width, in words, of CIDEr-D's Gaussian penalty on the difference of lengths.

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
  r"-[lr][rsc]b-|n't\b|'(?:s|re|ve|ll|d|m)\b|(?:mr|mrs|ms|dr|st)\.|(?:[a-z]\.){2,}"
  r'|\d+(?:[.,:/]\d+)+(?:-\w+)*'
  r"|\w+(?:(?:[-/&]|(?<=[a-z])')\w+)*|[^\w\s.,:;?!'\"`“”‘()\[\]{}…–—-]"
)

Gram = tuple[str, ...]
# The weighted n-grams of one length and their Euclidean norm.
WeightedGrams = tuple[dict[Gram, float], float]


def tokens(text: str) -> list[str]:
  """Returns the words in lower case: "The man's hat isn't red." -> the man 's hat is n't red."""
  text = text.lower().replace('’', "'")
  for bracket, name in _BRACKETS.items():
    text = text.replace(bracket, name)
  text = _CONTRACTION.sub(r' \1', text)
  text = _TWO_WORDS.sub(r'\1 \2', text)
  return _TOKEN.findall(text)


def ngrams(words: Sequence[str]) -> Counter[Gram]:
  """Counts the n-grams of one to four words."""
  return Counter(
    tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1)
  )


def bleu(answers: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
  """Returns corpus BLEU-1 to BLEU-4 in [0, 1]. The brevity penalty uses the nearest reference.

  Args:
    answers: words of each answer.
    references: words of all true captions of each answer.
  """
  correct, total = [0] * ORDER, [0] * ORDER
  answer_length = reference_length = 0
  for words, truths in zip(answers, references, strict=True):
    most = Counter()
    for truth in truths:
      most |= ngrams(truth)
    for gram, count in ngrams(words).items():
      correct[len(gram) - 1] += min(count, most[gram])
      total[len(gram) - 1] += count
    answer_length += len(words)
    _, nearest = min((abs(len(truth) - len(words)), len(truth)) for truth in truths)
    reference_length += nearest
  brevity = math.exp(min(0.0, 1 - reference_length / answer_length)) if answer_length else 0.0
  result, product = [], 1.0
  for n in range(ORDER):
    product *= correct[n] / total[n] if total[n] else 0.0
    result.append(brevity * product ** (1 / (n + 1)))
  return result


def cider(answers: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
  """Returns the CIDEr-D of every answer, from 0 to 10.

  Document frequencies of n-grams are counted over the references of all answers together.

  Args:
    answers: words of each answer.
    references: words of all true captions of each answer.
  """
  reference_grams = [[ngrams(truth) for truth in truths] for truths in references]
  frequency = Counter()  # n-gram -> number of images with it in a reference
  for grams in reference_grams:
    frequency.update(set().union(*grams))
  log_images = math.log(max(len(references), 1))

  scores = []
  for words, truths, grams in zip(answers, references, reference_grams, strict=True):
    vectors = _tf_idf(ngrams(words), frequency, log_images)
    similarities = []
    for truth, truth_grams in zip(truths, grams):
      similarity = _similarity(vectors, _tf_idf(truth_grams, frequency, log_images))
      penalty = math.exp(-((len(words) - len(truth)) ** 2) / (2 * SIGMA**2))
      similarities.append(similarity * penalty)
    scores.append(10 * sum(similarities) / len(similarities))
  return scores


def _tf_idf(
  grams: Mapping[Gram, int], frequency: Mapping[Gram, int], log_images: float
) -> list[WeightedGrams]:
  """Returns the TF-IDF weights of the n-grams and their norm, for each n from 1 to 4."""
  weights: list[dict[Gram, float]] = [{} for _ in range(ORDER)]
  for gram, count in grams.items():
    weights[len(gram) - 1][gram] = count * (log_images - math.log(max(frequency[gram], 1)))
  return [(part, math.sqrt(sum(weight**2 for weight in part.values()))) for part in weights]


def _similarity(answer: Sequence[WeightedGrams], truth: Sequence[WeightedGrams]) -> float:
  """Returns the mean over n of the cosine. An n-gram weighs at most what it does in the truth."""
  cosines = []
  for (weights, norm), (true_weights, true_norm) in zip(answer, truth):
    shared = sum(
      min(weight, true_weights[gram]) * true_weights[gram]
      for gram, weight in weights.items()
      if gram in true_weights
    )
    cosines.append(shared / (norm * true_norm) if norm and true_norm else 0.0)
  return sum(cosines) / ORDER


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns a tenth of every caption's CIDEr-D, which is in [0, 1]."""
  del official
  return [value / 10 for value in cider(*_tokenized(entries))]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Scores captions.

  Args:
    entries: one an image, with 'answer' and 'gt_answers', the list of its true captions.
    official: has no effect, because the SPHINX script does not score captions.

  Returns:
    {'CIDEr': mean CIDEr-D (0 to 10, often reported times 100), 'BLEU-1' ... 'BLEU-4': in [0, 1]}.

  Raises:
    SphinxError: there are no entries, or one has no true caption.
  """
  del official
  scoring.require_nonempty('captions', entries)
  answers, references = _tokenized(entries)
  result = scoring.mean('CIDEr', cider(answers, references))
  for n, value in enumerate(bleu(answers, references), 1):
    result[f'BLEU-{n}'] = value
  return result


def _tokenized(entries: Sequence[dict]) -> tuple[list[list[str]], list[list[list[str]]]]:
  """Returns the words of the answers, and of the true captions of each."""
  answers = [tokens(entry['answer']) for entry in entries]
  references = [
    [tokens(text) for text in scoring.as_list('captions', entry['gt_answers'])] for entry in entries
  ]
  return answers, references
