"""Captioning. The source chooses the domain (real or synthetic) of the caption under 'caption'.

The metric compares what is mentioned, not the wording, so it needs no list of objects. A color with
the noun after it is one thing ('red circle'). So is every other word with a meaning of its own
('waving', 'title', 'sun').
"""

import re
from typing import Any

import numpy as np

from sphinx_jax.tasks import task

INSTRUCTIONS = (
  'Provide a one-sentence caption for the provided image.',
  'Describe the image.',
  'Write a caption.',
  'What is in the image?',
)

_WORD = re.compile(r'[^\W\d_]+')
_COLORS = frozenset(
  (
    'black blue brown cyan gold gray green grey magenta orange pink purple red silver white yellow'
  ).split()
)
# Function words, the frame of a caption, sizes and places: the words around the things.
_AROUND = frozenset(
  (
    'a an and are at by for from has here in into is it its of on or shows that the there these '
    'this to with image page person photo picture scene word written big large little small tiny '
    'above below bottom center centre corner half left lower middle right side top upper'
  ).split()
)


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn with the caption. 'captions', all references, are the truth's 'answers'."""
  del max_turns
  caption = annotation['caption'].strip()
  truth = {'answer': caption}
  if annotation.get('captions'):
    truth['answers'] = [reference.strip() for reference in annotation['captions']]
  return [task.Turn(task.choose(INSTRUCTIONS, rng), caption, truth)]


def things(text: str) -> set[str]:
  """Returns the things that a caption mentions: {'red circle', 'waving', ...}."""
  result: set[str] = set()
  color = ''
  for word in _WORD.findall(text.lower()):
    if word in _COLORS or word in _AROUND:
      if color:
        result.add(color)  # A color without a noun is a thing of its own.
      color = word if word in _COLORS else ''
    else:
      result.add(f'{color} {word}'.strip())
      color = ''
  if color:
    result.add(color)
  return result


def score(answer: str, truth: dict[str, Any]) -> tuple[float, float]:
  """F1 of the mentioned things as (2 tp, 2 tp + fp + fn), with the nearest reference."""
  mentioned = things(answer)
  counts = []
  for reference in truth.get('answers', [truth['answer']]):
    expected = things(reference)
    if mentioned or expected:
      counts.append((2.0 * len(mentioned & expected), float(len(mentioned) + len(expected))))
    else:  # '12:30' mentions nothing.
      counts.append((2.0 * task.exact_match(answer, {'answer': reference})[0], 2.0))
  return max(counts, key=lambda count: count[0] / max(count[1], 1.0))


TASK = task.Task('caption', 'F1 of things', INSTRUCTIONS, turns, score)
