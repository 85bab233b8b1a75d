"""Captioning. Which domain (real or synthetic) is the source's choice: it puts that caption under 'caption'.

The metric compares what is mentioned, not the wording, so it needs no list of things: a colour with the noun it stands
before is one thing ('red circle'), and so is every other word that tells what is there ('waving', 'title', 'sun').
"""

import re

from sphinx_jax.tasks import task as base

INSTRUCTIONS = (
  'Provide a one-sentence caption for the provided image.',
  'Describe the image.',
  'Write a caption.',
  'What is in the image?',
)

_LETTERS = re.compile(r'[^\W\d_]+')
_COLORS = frozenset(
  'black blue brown cyan gold gray green grey magenta orange pink purple red silver white yellow'.split()
)
# Function words, the frame of a caption, sizes and places: what a caption says around the things it mentions.
_AROUND = frozenset(
  'a an and are at by for from has here in into is it its of on or shows that the there these this to with '
  'image page person photo picture scene word written big large little small tiny '
  'above below bottom center centre corner half left lower middle right side top upper'.split()
)


def turns(annotation, rng, max_turns):
  """One turn: the caption as it is. 'captions', all references, are the truth's 'answers'."""
  del max_turns
  caption = annotation['caption'].strip()
  truth = {'answer': caption}
  if annotation.get('captions'):
    truth['answers'] = [reference.strip() for reference in annotation['captions']]
  return [base.Turn(base.choose(INSTRUCTIONS, rng), caption, truth)]


def things(text: str) -> set[str]:
  """What a caption mentions: {'red circle', 'waving', ...}."""
  result, color = set(), ''
  for word in _LETTERS.findall(text.lower()):
    if word in _COLORS or word in _AROUND:
      result |= {color} - {''}  # A colour that no noun follows stands for itself.
      color = word if word in _COLORS else ''
    else:
      result.add(f'{color} {word}'.strip())
      color = ''
  return result | {color} - {''}


def score(answer, truth):
  """F1 of mentioned things as (2 tp, 2 tp + fp + fn), with the reference that the answer is nearest to."""
  said = things(answer)
  counts = [
    (2.0 * len(said & meant), float(len(said) + len(meant)))
    for meant in map(things, truth.get('answers', [truth['answer']]))
  ]
  return max(counts, key=lambda count: count[0] / max(count[1], 1.0))


TASK = base.Task('caption', 'F1 of things', INSTRUCTIONS, turns, score)
