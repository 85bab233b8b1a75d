"""VQA accuracy (VQAv2, OK-VQA, TextVQA, VizWiz): normalised text against all annotators, each left out once."""

import re
from collections.abc import Sequence

from sphinx_jax.core import errors
from sphinx_jax.evaluation.protocols import scoring as base

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # Neither apostrophe (possessives) nor colon (times).
_DIGIT_COMMA = re.compile(r'\d,\d')
_PERIOD = re.compile(r'\.(?!\d)')
_MOST_PERIODS = (
  32  # The toolkit's call passes the flag re.UNICODE, which is 32, as the number of replacements.
)
_ARTICLES = {'a', 'an', 'the'}
_NUMBERS = {
  word: str(number)
  for number, word in enumerate('zero one two three four five six seven eight nine ten'.split())
} | {'none': '0'}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
# Exactly one apostrophe may be missing.
_REPAIRS = {
  word[:i] + word[i + 1 :]: word
  for word in _CONTRACTIONS
  for i, letter in enumerate(word)
  if letter == "'"
}
_REPAIRS["somebody'd"] = 'somebodyd'  # The toolkit has this one the wrong way round.


def remove_punctuation(text: str) -> str:
  """Punctuation -> space, or -> nothing beside a space or where a comma stands between digits; periods stay before digits.

  Source: `processPunctuation` of the VQA toolkit (github.com/GT-Vision-Lab/VQA).
  """
  thousands = _DIGIT_COMMA.search(text)
  result = text
  for mark in _PUNCTUATION:
    glued = thousands or f'{mark} ' in text or f' {mark}' in text
    result = result.replace(mark, '' if glued else ' ')
  return _PERIOD.sub('', result, count=_MOST_PERIODS)


def normalize(text: str) -> str:
  """The form in which VQA answers are compared: lower case, without punctuation and articles, numbers to ten as digits.

  Contractions get back a missing apostrophe. Source: visualqa.org/evaluation, in the toolkit's order of steps.
  """
  text = text.replace('\n', ' ').replace('\t', ' ').strip()
  words = [_NUMBERS.get(word, word) for word in remove_punctuation(text).lower().split()]
  return ' '.join(_REPAIRS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, annotations: Sequence[str], official: bool = False) -> float:
  """Mean over the annotators of min(1, matches among the others / 3), in [0, 1].

  Args:
    answer: what the model says.
    annotations: one answer an annotator, 10 in all the benchmarks.
    official: the annotators' answers lose only their punctuation, and only where they differ from each other, as in
      the SPHINX script. The definition (visualqa.org/evaluation) normalises them as it does the model's answer.

  Raises:
    SphinxError: fewer than two annotators, or one text instead of a list.
  """
  if isinstance(annotations, str) or len(annotations) < 2:
    raise errors.make(
      'vqa_score',
      f'annotations {annotations!r}',
      'a list with the answer of every annotator',
      "take the answers from the benchmark's annotation file, 'gt_answers' holds only the commonest",
    )
  if not official:
    truths = [normalize(text) for text in annotations]
  elif len(set(annotations)) > 1:
    truths = [remove_punctuation(text) for text in annotations]
  else:
    truths = list(annotations)
  said = normalize(answer)
  matches = [truth == said for truth in truths]
  return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """The score of every entry, in [0, 1]."""
  return [vqa_accuracy(e['answer'], e['gt_answers'], official) for e in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'vqa_score': mean accuracy} of entries with 'answer' and 'gt_answers', the list of all annotators' answers."""
  return base.mean('vqa_score', each(entries, official))
