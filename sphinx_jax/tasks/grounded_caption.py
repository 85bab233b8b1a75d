"""Grounded captioning: a sentence whose phrases have their boxes, `a <p>red circle</p>[...]`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import coordinates
from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task

INSTRUCTIONS = (
  'Describe the image with grounded boxes.',
  'Describe the image and give a box for each thing.',
  'Write a grounded caption.',
  'Caption the image with boxes.',
)


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn: the dataset's sentence, or all objects from left to right.

  The latter is `a <p>red cup</p>[...] and a <p>hat</p>[...]`.
  """
  del max_turns
  if 'phrases' in annotation:
    sentence, truth = _from_phrases(annotation['phrases'])
  else:
    sentence, truth = _from_objects(task.without_crowds(annotation['objects']))
  return [task.Turn(task.choose(INSTRUCTIONS, rng), sentence, truth)]


def _from_phrases(phrases: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
  texts = [task.plain_text(phrase['text']) for phrase in phrases]
  boxes = [[task.check_box(box) for box in phrase.get('boxes', ())] for phrase in phrases]
  if not any(boxes):
    raise BadExample('nothing to ask', f'no phrase has a box in {"".join(texts)!r:.200}')
  pieces = []
  truth: dict[str, Any] = {'labels': [], 'boxes': []}
  for text, group in zip(texts, boxes):
    pieces.append(coordinates.format_phrase(text, group) if group else text)
    truth['labels'] += [text] * len(group)
    truth['boxes'] += group
  return ''.join(pieces).strip(), truth


def _from_objects(objects: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
  ordered = sorted(objects, key=task.center)
  labels = [task.plain_label(task.expression(thing)) for thing in ordered]
  boxes = [task.check_box(thing['box']) for thing in ordered]
  phrases = []
  for label, box in zip(labels, boxes):
    article, _, _ = task.with_article(label).partition(' ')
    phrases.append(f'{article} {coordinates.format_phrase(label, [box])}')
  sentence = ', '.join(phrases[:-1])
  if sentence:
    sentence += ' and '
  sentence += phrases[-1] if phrases else ''
  return sentence, {'labels': labels, 'boxes': boxes}


TASK = task.Task('grounded_caption', 'F1 at IoU 0.5', INSTRUCTIONS, turns, task.labeled_box_f1)
