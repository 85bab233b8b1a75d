"""What a task is, and the few things several tasks share.

A task turns an annotation into dialog turns and scores what a model answers. It reads only the lists of the annotation
it needs (coordinates in [0, 1] on the padded square image), so any dataset that can fill one of them can use the task.
What a dataset gives ('?': may be missing) is asked as it is given; where it only gives objects, questions are made of them:

    caption           'caption': str, the one to train; 'captions'?: [str], all references
    vqa, ocr          'questions': [{'id', 'question', 'answer', 'answers'?, 'choices'?, 'context'?, 'instruction'?}], see
                      questions.py; else vqa reads 'objects', and ocr 'words': [{'text', 'color'?, 'box'}]
    rec, reg          'objects', with 'expressions'?: [str] that tell one from all others (rec asks for any of them, reg
                      trains the first); else by colour and name
    grounded_caption  'phrases': [{'text', 'boxes'}], pieces that joined are the sentence; else 'objects'
    detection         'objects'; with 'classes'?: [str], all that the dataset knows, one class may be asked for. 'absent'?:
                      classes known not to be there, 'partial'?: classes of which not every object is listed; with either,
                      'objects' does not hold everything (LVIS) and only single classes are asked for
    counting          the same
    relation          'relations': [{'subject': i, 'predicate': str, 'object': j}] between 'objects'; else by their places
    layout            'blocks': [{'label', 'box'}]; 'classes'?, 'absent'?, 'partial'? as in detection
    pose              'people': [{'box', 'keypoints': [[x, y, v] x 17]}], v > 0 where the joint is annotated. 'every'?: True
                      says that others may be in the picture, so a box tells who is meant, and all may be asked for at once
    dialog            'turns': [[question or None, answer], ...]
    text              'text': str; 'document'?: True for one to be read as it is, else it is a sentence to continue

An object is {'name', 'box', 'color'?, 'expressions'?, 'crowd'?: bool}; its name may be any phrase. Crowds (one box around
many) are never asked for, of objects, blocks and people alike.

The truth of a turn is a dict of plain JSON values; boxes in it are 'box' or 'boxes' with their 'labels'.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.data.record import BadExample

# The official evaluation's prompt for every short answer.
SHORT_ANSWER = '{}\nAnswer the question using a single word or phrase.'

# The answer where a class that is asked for is not there.
NOTHING = 'None'


@dataclasses.dataclass(frozen=True)
class Turn:
  """One question and answer, with the structured truth its metric needs. Raises BadExample on an empty text.

  An instruction of None leaves out the human's line (data/dialog.py).
  """

  instruction: str | None
  answer: str
  truth: dict

  def __post_init__(self):
    if self.instruction is not None and not _filled(self.instruction):
      raise BadExample(
        'empty instruction', f'{self.instruction!r:.80}, the answer is {self.answer!r:.200}'
      )
    if not _filled(self.answer):
      raise BadExample('empty answer', f'{self.answer!r:.80} to {self.instruction!r:.200}')


@dataclasses.dataclass(frozen=True)
class Task:
  """A task family.

  Attributes:
    name: its key in TASKS.
    metric: the metric's name; its value over examples is sum(numerators) / sum(denominators).
    instructions: the phrasings, the official evaluation's first where there is one; '{}' takes what is asked about. Other
      forms of the task have their own phrasings in its file.
    turns: (annotation, rng, max_turns) -> 1 to max_turns turns, a pure function of annotation and rng state. Raises
      BadExample when the annotation gives nothing to ask or is wrong.
    score: (answer text, truth) -> (numerator, denominator). Never raises: unreadable answers score zero.
    mirrors: whether the picture may be mirrored with the annotation; not where text in it is read.
  """

  name: str
  metric: str
  instructions: tuple[str, ...]
  turns: Callable[[dict, np.random.Generator, int], list[Turn]]
  score: Callable[[str, dict], tuple[float, float]]
  mirrors: bool = True


def _filled(text: Any) -> bool:
  return isinstance(text, str) and bool(text.strip())


def choose(items: Sequence[Any], rng: np.random.Generator) -> Any:
  """One of the items, uniformly."""
  return items[rng.integers(len(items))]


def sample(items: Sequence[Any], rng: np.random.Generator, limit: int, what: str) -> list[Any]:
  """Up to `limit` of the items in random order. Raises BadExample when there are none."""
  if not items:
    raise BadExample('nothing to ask', f'the annotation has no {what}')
  return [items[i] for i in rng.permutation(len(items))[:limit]]


def single(things: Sequence[dict]) -> list[dict]:
  """The things without crowds."""
  return [thing for thing in things if not thing.get('crowd')]


def checked_box(box: Sequence[float]) -> list[float]:
  """The box as floats. Raises BadExample unless 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1."""
  box = [float(number) for number in box]
  if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
    raise BadExample(
      'box outside the image',
      f'{box}, expected [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1',
    )
  return box


def center(item: dict) -> tuple[float, float]:
  """The middle (x, y) of an annotated thing's box."""
  x1, y1, x2, y2 = checked_box(item['box'])
  return (x1 + x2) / 2, (y1 + y2) / 2


def expression(item: dict) -> str:
  """How an object is referred to: 'red circle', or just its name where it has no colour."""
  return f'{item.get("color", "")} {item["name"]}'.strip()


def referred(objects: Sequence[dict]) -> list[tuple[dict, list[str]]]:
  """[(object, expressions that name it and nothing else), ...], without objects that have none.

  Where any object has 'expressions' only those count, as the dataset says what may be asked; else `expression` does.
  """
  given = any(item.get('expressions') for item in objects)
  names = [list(item.get('expressions') or ()) if given else [expression(item)] for item in objects]
  owners = Counter(name for own in names for name in {normalize(name) for name in own})
  alone = [[name for name in own if owners[normalize(name)] == 1] for own in names]
  return [(item, own) for item, own in zip(objects, alone) if own and not item.get('crowd')]


def without_article(phrase: str) -> str:
  """'the man in red' -> 'man in red'."""
  return re.sub(r'^(a|an|the)\s+', '', phrase, flags=re.IGNORECASE)


def with_article(phrase: str) -> str:
  """'an orange cup', 'a red circle'."""
  return f'{"an" if phrase[:1].lower() in "aeiou" else "a"} {phrase}'


def normalize(text: str) -> str:
  """Lower case without outer punctuation and leading article, the form in which short answers are compared."""
  return without_article(' '.join(text.lower().split()).strip(' .,;:!?"\''))


def exact_match(answer: str, truth: dict) -> tuple[float, float]:
  """Accuracy: 1 if the answer equals truth['answer'] in normal form."""
  return float(normalize(answer) == normalize(truth['answer'])), 1.0


def any_match(answer: str, truth: dict) -> tuple[float, float]:
  """Accuracy: 1 if the answer equals one of truth['answers'], or truth['answer'] where there is one only, in normal form."""
  return float(
    normalize(answer) in {normalize(other) for other in truth.get('answers', [truth['answer']])}
  ), 1.0


def labelled_boxes(pairs: Sequence[tuple[str, Sequence[float]]]) -> tuple[str, dict]:
  """[(label, box), ...] -> the answer 'cup [box; box], hat [box]' and its truth; labels in order of first appearance."""
  groups: dict[str, list] = {}
  for label, box in pairs:
    groups.setdefault(label, []).append(checked_box(box))
  answer = ', '.join(
    f'{label} {coordinates.format_boxes(group)}' for label, group in groups.items()
  )
  labels = [label for label, group in groups.items() for _ in group]
  return answer, {'labels': labels, 'boxes': [box for group in groups.values() for box in group]}


def labelled_f1(answer: str, truth: dict) -> tuple[float, float]:
  """F1 over (label, box) at IoU 0.5 as (2 tp, 2 tp + fp + fn), read from any text of labelled brackets.

  Where nothing is there, the answer NOTHING counts as one box found.
  """
  groups = [
    (normalize(label), box)
    for label, group in coordinates.parse_groups(answer)
    for box in group
    if len(box) == 4
  ]
  if not truth['boxes']:
    right = float(normalize(answer) == normalize(NOTHING))
    return 2.0 * right, 2.0 * right if right else float(len(groups) + 1)
  true_positives = boxes.match(
    [box for _, box in groups],
    truth['boxes'],
    predicted_labels=[label for label, _ in groups],
    truth_labels=[normalize(label) for label in truth['labels']],
  )
  return 2.0 * true_positives, float(len(groups) + len(truth['boxes']))


DIRECTIONS = ('left of', 'right of', 'above', 'below')


def direction(subject: dict, other: dict) -> str | None:
  """Where the subject lies seen from the other, one of DIRECTIONS; None where people would disagree.

  It is told only when the centres are 0.1 apart and one axis clearly outweighs the other.
  """
  (x, y), (other_x, other_y) = center(subject), center(other)
  dx, dy = x - other_x, y - other_y
  if max(abs(dx), abs(dy)) < 0.1 or 1.25 * min(abs(dx), abs(dy)) > max(abs(dx), abs(dy)):
    return None
  if abs(dx) > abs(dy):
    return 'left of' if dx < 0 else 'right of'
  return 'above' if dy < 0 else 'below'


def short_answer_turns(
  questions: Sequence[tuple[str, str]], rng: np.random.Generator, instructions: Sequence[str]
) -> list[Turn]:
  """Turns of (question, answer) pairs; only the first carries the wording around the question, the rest follow it."""
  wrapper = choose(instructions, rng)
  return [
    Turn(question if i else wrapper.format(question), answer, {'answer': answer})
    for i, (question, answer) in enumerate(questions)
  ]
