"""What a task is, and the few things several tasks share.

A task turns an annotation into dialog turns and scores what a model answers. It reads only the lists of the annotation
it needs (coordinates in [0, 1] on the padded square image), so any dataset that can fill one of them can use the task:

    caption            'caption': str; a source with several caption domains puts the wanted one there
    vqa, relation      'objects': [{'name', 'color', 'box'}]
    rec, reg, detection, grounded_caption   the same; 'color' may be '' or missing, 'name' may be any phrase
    ocr                'words': [{'text', 'color', 'box'}]
    layout             'blocks': [{'label', 'box'}]
    pose               'people': [{'box', 'keypoints': [[x, y, v] x 17]}], v > 0 where the joint is annotated
    text               'text': str

The truth of a turn is a dict of plain JSON values; boxes in it are 'box' or 'boxes' with their 'labels'.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.data.record import BadExample

# The official evaluation's prompt for every short answer.
SHORT_ANSWER = '{}\nAnswer the question using a single word or phrase.'


@dataclasses.dataclass(frozen=True)
class Turn:
  """One question and answer, with the structured truth its metric needs. Raises BadExample on an empty text."""

  instruction: str
  answer: str
  truth: dict

  def __post_init__(self):
    if not self.instruction.strip():
      raise BadExample('empty instruction', f'the answer is {self.answer!r}')
    if not self.answer.strip():
      raise BadExample('empty answer', f'to {self.instruction!r}')


@dataclasses.dataclass(frozen=True)
class Task:
  """A task family.

  Attributes:
    name: its key in TASKS.
    metric: the metric's name; its value over examples is sum(numerators) / sum(denominators).
    instructions: the phrasings, the official evaluation's first where there is one; '{}' takes what is asked about.
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


def choose(items: Sequence[Any], rng: np.random.Generator) -> Any:
  """One of the items, uniformly."""
  return items[rng.integers(len(items))]


def sample(items: Sequence[Any], rng: np.random.Generator, limit: int, what: str) -> list[Any]:
  """Up to `limit` of the items in random order. Raises BadExample when there are none."""
  if not items:
    raise BadExample('nothing to ask', f'the annotation has no {what}')
  return [items[i] for i in rng.permutation(len(items))[:limit]]


def checked_box(box: Sequence[float]) -> list[float]:
  """The box as floats. Raises BadExample unless 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1."""
  box = [float(number) for number in box]
  if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
    raise BadExample('box outside the image', f'{box}, expected [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1')
  return box


def center(item: dict) -> tuple[float, float]:
  """The middle (x, y) of an annotated thing's box."""
  x1, y1, x2, y2 = checked_box(item['box'])
  return (x1 + x2) / 2, (y1 + y2) / 2


def expression(item: dict) -> str:
  """How an object is referred to: 'red circle', or just its name where it has no colour."""
  return f"{item.get('color', '')} {item['name']}".strip()


def with_article(phrase: str) -> str:
  """'an orange cup', 'a red circle'."""
  return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def normalize(text: str) -> str:
  """Lower case without outer punctuation and leading article, the form in which short answers are compared."""
  return re.sub(r'^(a|an|the)\s+', '', ' '.join(text.lower().split()).strip(' .,;:!?"\''))


def exact_match(answer: str, truth: dict) -> tuple[float, float]:
  """Accuracy: 1 if the answer equals truth['answer'] in normal form."""
  return float(normalize(answer) == normalize(truth['answer'])), 1.0


def labelled_boxes(pairs: Sequence[tuple[str, Sequence[float]]]) -> tuple[str, dict]:
  """[(label, box), ...] -> the answer 'cup [box; box], hat [box]' and its truth; labels in order of first appearance."""
  groups: dict[str, list] = {}
  for label, box in pairs:
    groups.setdefault(label, []).append(checked_box(box))
  answer = ', '.join(f'{label} {coordinates.format_boxes(group)}' for label, group in groups.items())
  labels = [label for label, group in groups.items() for _ in group]
  return answer, {'labels': labels, 'boxes': [box for group in groups.values() for box in group]}


def labelled_f1(answer: str, truth: dict) -> tuple[float, float]:
  """F1 over (label, box) at IoU 0.5 as (2 tp, 2 tp + fp + fn), read from any text of labelled brackets."""
  groups = [(normalize(label), box) for label, group in coordinates.parse_groups(answer) for box in group if len(box) == 4]
  true_positives = boxes.match(
      [box for _, box in groups], truth['boxes'],
      predicted_labels=[label for label, _ in groups], truth_labels=[normalize(label) for label in truth['labels']])
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


def short_answer_turns(questions: Sequence[tuple[str, str]], rng: np.random.Generator, instructions: Sequence[str]) -> list[Turn]:
  """Turns of (question, answer) pairs; only the first carries the wording around the question, the rest follow it."""
  wrapper = choose(instructions, rng)
  return [Turn(question if i else wrapper.format(question), answer, {'answer': answer})
          for i, (question, answer) in enumerate(questions)]
