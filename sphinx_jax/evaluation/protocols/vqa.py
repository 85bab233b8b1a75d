"""VQA accuracy (VQAv2, OK-VQA, TextVQA, VizWiz): normalized text against all annotators.

Each annotator is left out once.
"""

import re
from collections.abc import Sequence

from sphinx_jax.core import answers, errors
from sphinx_jax.evaluation.protocols import scoring

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # Neither apostrophe (possessives) nor colon (times).
_DIGIT_COMMA = re.compile(r'\d,\d')
_PERIOD = re.compile(r'\.(?!\d)')
# The toolkit passes the flag re.UNICODE, which is 32, as the number of replacements.
_MAX_PERIODS = 32
_ARTICLES = {'a', 'an', 'the'}
_NUMBER_WORDS = 'zero one two three four five six seven eight nine ten'.split()
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {'none': '0'}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
# Contractions without one of their apostrophes -> with it.
_REPAIRS = {
  word[:i] + word[i + 1 :]: word
  for word in _CONTRACTIONS
  for i, letter in enumerate(word)
  if letter == "'"
}
_REPAIRS["somebody'd"] = 'somebodyd'  # The toolkit swaps the two by mistake.


def remove_punctuation(text: str) -> str:
  """Replaces punctuation by a space, or by nothing. Periods before digits stay.

  Punctuation beside a space is dropped. If the text has a comma between digits, all of it is.
  Source: `processPunctuation` of the VQA toolkit (github.com/GT-Vision-Lab/VQA).
  """
  has_digit_comma = _DIGIT_COMMA.search(text) is not None
  result = text
  for mark in _PUNCTUATION:
    drop = has_digit_comma or f'{mark} ' in text or f' {mark}' in text
    result = result.replace(mark, '' if drop else ' ')
  return _PERIOD.sub('', result, count=_MAX_PERIODS)


def normalize(text: str) -> str:
  """Returns the form in which VQA answers are compared.

  It is lower case, without punctuation and articles, with numbers up to ten as digits. A missing
  apostrophe of a contraction is restored. Source: visualqa.org/evaluation, in the toolkit's order
  of steps.
  """
  text = text.replace('\n', ' ').replace('\t', ' ').strip()
  words = [_NUMBERS.get(word, word) for word in remove_punctuation(text).lower().split()]
  return ' '.join(_REPAIRS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, annotations: Sequence[str], official: bool = False) -> float:
  """Returns the mean over the annotators of min(1, matches among the others / 3), in [0, 1].

  Args:
    answer: the model's answer.
    annotations: one answer per annotator, 10 in all these benchmarks.
    official: remove only punctuation from the annotators' answers, and only if they differ from
      each other, as the SPHINX script does. The definition (visualqa.org/evaluation) normalizes
      them like the model's answer.

  Raises:
    SphinxError: there are fewer than two annotators, or one text instead of a list.
  """
  if isinstance(annotations, str) or len(annotations) < 2:
    raise errors.make(
      'vqa_score',
      f'annotations {annotations!r}',
      'a list with the answer of every annotator',
      "take the answers from the benchmark's annotation file, because 'gt_answers' of the official "
      'files has only the most common one',
    )
  if not official:
    truths = [normalize(text) for text in annotations]
  elif len(set(annotations)) > 1:
    truths = [remove_punctuation(text) for text in annotations]
  else:
    truths = list(annotations)
  normalized = normalize(answer)
  matches = [truth == normalized for truth in truths]
  return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns the VQA accuracy of every entry, in [0, 1]."""
  texts = [entry['answer'] if official else answers.unwrapped(entry['answer']) for entry in entries]
  return [vqa_accuracy(text, entry['gt_answers'], official) for text, entry in zip(texts, entries)]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'vqa_score': mean accuracy} over entries.

  Args:
    entries: dicts with 'answer' and 'gt_answers', the list of all annotators' answers.
    official: see `vqa_accuracy`.

  Raises:
    SphinxError: there are no entries, or one has fewer than two annotators.
  """
  return scoring.mean('vqa_score', per_example_scores(entries, official))
