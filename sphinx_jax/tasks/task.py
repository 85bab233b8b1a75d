"""The interface of a task, and the helpers that several tasks share.

A task turns an annotation into dialog turns, and scores the answers of a model. It reads only the
lists of the annotation that it needs (coordinates in [0, 1] on the padded square image), so every
dataset that has one of the lists can use the task. Questions, expressions and relations of a
dataset are asked as they are. If a dataset only has objects, the task makes the questions. '?'
marks optional keys:

    caption           'caption': str, the one to train; 'captions'?: [str], all references
    vqa, ocr          'questions': [{'id', 'question', 'answer', 'answers'?, 'choices'?, 'context'?,
                      'instruction'?}], see questions.py. Without it, vqa reads 'objects', and ocr
                      'words': [{'text', 'color'?, 'box'}]
    rec, reg          'objects', with 'expressions'?: [str] that single out the object (rec asks for
                      any of them, reg trains the first). Without them: color and name
    grounded_caption  'phrases': [{'text', 'boxes'}], whose joined texts are the sentence. Without
                      it: 'objects'
    detection         'objects'. With 'classes'?: [str], all classes of the dataset, single classes
                      may be asked for. 'absent'?: classes known not to be in the image. 'partial'?:
                      classes of which not every object is listed. With either of the two, 'objects'
                      is not complete (LVIS), and only single classes are asked for
    counting          like detection
    relation          'relations': [{'subject': i, 'predicate': str, 'object': j}], indices of
                      'objects'. Without it: the positions of 'objects'
    difference        'objects' of the first image, and 'second': those of the second
    layout            'blocks': [{'label', 'box'}]; 'classes'?, 'absent'?, 'partial'? like detection
    pose              'people': [{'box', 'keypoints': [[x, y, v] x 17]}], v > 0 for an annotated
                      joint. 'every'?: True if other people may be in the image. Then a box says
                      which person is meant, and all people may be asked for at once
    dialog            'turns': [[question or None, answer], ...]
    text              'text': str. 'document'?: True for a document to read as it is; otherwise it
                      is a sentence to continue

An object is {'name', 'box', 'color'?, 'expressions'?, 'crowd'?: bool}. Its name may be any phrase.
A crowd (one box around many) is never asked for, whether of objects, blocks or people.

The truth of a turn is a dict of JSON values. Boxes in it are 'box', or 'boxes' with their 'labels'.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import answers, boxes, coordinates
from sphinx_jax.data.record import BadExample

# The official evaluation's prompt for every short answer.
SHORT_ANSWER = '{}\nAnswer the question using a single word or phrase.'

# The answer if no object of the requested class is in the image.
NOTHING = 'None'

DIRECTIONS = ('left of', 'right of', 'above', 'below')
_MIN_DISTANCE = 0.1  # Between centers, for a direction.
_MIN_RATIO = 1.25  # Of the longer to the shorter axis of that distance.
_PARENTHESES = str.maketrans('[]', '()')


@dataclasses.dataclass(frozen=True)
class Turn:
  """A question and its answer.

  Attributes:
    instruction: the question. None leaves out the human's line (data/dialog.py).
    answer: the answer to train.
    truth: JSON values that the metric needs.

  Raises:
    BadExample: 'empty instruction', 'empty answer'.
  """

  instruction: str | None
  answer: str
  truth: dict[str, Any]

  def __post_init__(self) -> None:
    if self.instruction is not None and not _has_text(self.instruction):
      raise BadExample(
        'empty instruction', f'{self.instruction!r:.80}, the answer is {self.answer!r:.200}'
      )
    if not _has_text(self.answer):
      raise BadExample('empty answer', f'{self.answer!r:.80} to {self.instruction!r:.200}')


@dataclasses.dataclass(frozen=True)
class Task:
  """A task family.

  Attributes:
    name: key in TASKS.
    metric: name of the metric. Its value over examples is sum(numerators) / sum(denominators).
    instructions: the phrasings. That of the official evaluation comes first, if it has one. '{}'
      stands for what is asked about. Other forms of the task have their own phrasings in its file.
    turns: (annotation, rng, max_turns) -> 1 to max_turns turns. A pure function of the annotation
      and the state of rng. Raises BadExample for an annotation that is wrong or has nothing to ask
      about.
    score: (answer, truth) -> (numerator, denominator). Never raises: an unreadable answer scores
      zero.
    mirrors: whether the image may be mirrored together with the annotation. False if text in the
      image is read.
  """

  name: str
  metric: str
  instructions: tuple[str, ...]
  turns: Callable[[dict[str, Any], np.random.Generator, int], list[Turn]]
  score: Callable[[str, dict[str, Any]], tuple[float, float]]
  mirrors: bool = True


def _has_text(text: Any) -> bool:
  return isinstance(text, str) and bool(text.strip())


def choose(items: Sequence[Any], rng: np.random.Generator) -> Any:
  """Returns one of the items, uniformly."""
  return items[rng.integers(len(items))]


def sample(items: Sequence[Any], rng: np.random.Generator, limit: int, what: str) -> list[Any]:
  """Returns up to `limit` of the items in random order.

  Raises:
    BadExample: 'nothing to ask' if there are no items. `what` names them in the message.
  """
  if not items:
    raise BadExample('nothing to ask', f'the annotation has no {what}')
  return [items[i] for i in rng.permutation(len(items))[:limit]]


def without_crowds(things: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the objects, blocks or people that are not crowds."""
  return [thing for thing in things if not thing.get('crowd')]


def check_box(box: Sequence[float]) -> list[float]:
  """Returns the box as floats.

  Raises:
    BadExample: not 0 <= x1 < x2 <= 1 or not 0 <= y1 < y2 <= 1.
  """
  box = [float(number) for number in box]
  if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
    raise BadExample(
      'box outside the image',
      f'{box}, expected [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1',
    )
  return box


def center(thing: Mapping[str, Any]) -> tuple[float, float]:
  """Returns the center (x, y) of a thing's box."""
  x1, y1, x2, y2 = check_box(thing['box'])
  return (x1 + x2) / 2, (y1 + y2) / 2


def expression(thing: Mapping[str, Any]) -> str:
  """Returns the phrase for an object: 'red circle', or its name if it has no color."""
  return f'{thing.get("color", "")} {thing["name"]}'.strip()


def unambiguous_expressions(
  objects: Sequence[dict[str, Any]],
) -> list[tuple[dict[str, Any], list[str]]]:
  """Returns (object, expressions that mean this object only) for the objects that have any.

  If any object has 'expressions', only these are used: they are what may be asked for.
  Otherwise the expression of an object is `expression`.
  """
  has_expressions = any(thing.get('expressions') for thing in objects)
  if has_expressions:
    expressions = [list(thing.get('expressions') or ()) for thing in objects]
  else:
    expressions = [[expression(thing)] for thing in objects]
  owners: Counter[str] = Counter()
  for texts in expressions:
    owners.update({normalize(text) for text in texts})
  result = []
  for thing, texts in zip(objects, expressions):
    unambiguous = [text for text in texts if owners[normalize(text)] == 1]
    if unambiguous and not thing.get('crowd'):
      result.append((thing, unambiguous))
  return result


def without_article(phrase: str) -> str:
  """'the man in red' -> 'man in red'."""
  return re.sub(r'^(a|an|the)\s+', '', phrase, flags=re.IGNORECASE)


def with_article(phrase: str) -> str:
  """'orange cup' -> 'an orange cup'; 'red circle' -> 'a red circle'."""
  return f'{"an" if phrase[:1].lower() in "aeiou" else "a"} {phrase}'


def normalize(text: str) -> str:
  """Returns the form in which short answers are compared.

  It is lower case, without outer punctuation and without a leading article.
  """
  return without_article(' '.join(text.lower().split()).strip(' .,;:!?"\''))


def plain_label(text: str) -> str:
  """Returns a label in which nothing reads as markup (core/coordinates.py).

  Brackets become parentheses ('sign [stop]' -> 'sign (stop)'), and white space one space.
  """
  return ' '.join(plain_text(text).split())


def plain_text(text: str) -> str:
  """Returns a text with parentheses in place of square brackets and around `p` of <p> and </p>."""
  return re.sub('<(/?p)>', r'(\1)', text).translate(_PARENTHESES)


def _label_key(label: str) -> str:
  """Returns the form in which labels are compared.

  The parser drops a leading 'and' of a label, so labels are equal without them ('AND gate').
  """
  key = normalize(label)
  while (shorter := normalize(re.sub(r'^and\b', '', key))) != key:
    key = shorter
  return key


def exact_match(answer: str, truth: Mapping[str, Any]) -> tuple[float, float]:
  """Accuracy: 1 if the normalized answer equals truth['answer']."""
  return any_match(answer, {'answers': [truth['answer']]})


def any_match(answer: str, truth: Mapping[str, Any]) -> tuple[float, float]:
  """Accuracy: 1 if the normalized answer equals one of truth['answers'], or truth['answer'].

  Markup around it and 'The answer is' before it do not count.
  """
  accepted = truth.get('answers') or [truth['answer']]
  texts = {normalize(form) for form in answers.forms(answer)}
  return float(any(normalize(text) in texts for text in accepted)), 1.0


def format_labeled_boxes(
  pairs: Sequence[tuple[str, Sequence[float]]],
) -> tuple[str, dict[str, Any]]:
  """Returns the answer 'cup [box; box], hat [box]' for (label, box) pairs, and its truth.

  Labels are in the order of their first appearance.
  """
  boxes_of_label: dict[str, list[list[float]]] = {}
  for label, box in pairs:
    boxes_of_label.setdefault(plain_label(label), []).append(check_box(box))
  answer = ', '.join(
    f'{label} {coordinates.format_boxes(group)}' for label, group in boxes_of_label.items()
  )
  truth: dict[str, Any] = {'labels': [], 'boxes': []}
  for label, group in boxes_of_label.items():
    truth['labels'] += [label] * len(group)
    truth['boxes'] += group
  return answer, truth


def labeled_box_f1(answer: str, truth: Mapping[str, Any]) -> tuple[float, float]:
  """F1 over (label, box) at IoU 0.5 as (2 tp, 2 tp + fp + fn).

  The answer is any text with labeled brackets. If the truth has no box, the answer NOTHING counts
  as one found box.
  """
  predictions = [
    (_label_key(label), box)
    for label, group in coordinates.parse_groups(answer)
    for box in group
    if len(box) == 4
  ]
  if not truth['boxes']:
    if normalize(answer) == normalize(NOTHING):
      return 2.0, 2.0
    return 0.0, float(len(predictions) + 1)
  true_positives = boxes.match(
    [box for _, box in predictions],
    truth['boxes'],
    predicted_labels=[label for label, _ in predictions],
    truth_labels=[_label_key(label) for label in truth['labels']],
  )
  return 2.0 * true_positives, float(len(predictions) + len(truth['boxes']))


def direction(subject: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
  """Returns where the subject is, seen from the other object.

  Returns:
    One of DIRECTIONS. None if people would disagree: the centers are less than 0.1 apart, or
    neither axis clearly outweighs the other.
  """
  (x, y), (other_x, other_y) = center(subject), center(other)
  dx, dy = x - other_x, y - other_y
  longer, shorter = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
  if longer < _MIN_DISTANCE or _MIN_RATIO * shorter > longer:
    return None
  if abs(dx) > abs(dy):
    return 'left of' if dx < 0 else 'right of'
  return 'above' if dy < 0 else 'below'


def short_answer_turns(
  questions: Sequence[tuple[str, str]], rng: np.random.Generator, instructions: Sequence[str]
) -> list[Turn]:
  """Returns the turns of (question, answer) pairs.

  Only the first has one of the instructions around its question. The others follow it.
  """
  instruction = choose(instructions, rng)
  return [
    Turn(question if i else instruction.format(question), answer, {'answer': answer})
    for i, (question, answer) in enumerate(questions)
  ]
