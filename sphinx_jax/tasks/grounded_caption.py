"""Grounded captioning: a sentence whose phrases carry their boxes, `a <p>red circle</p>[...]` (Flickr30k Entities)."""

from sphinx_jax.core import coordinates
from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task as base

INSTRUCTIONS = (
  'Describe the image with grounded boxes.',
  'Describe the image and give a box for each thing.',
  'Write a grounded caption.',
  'Caption the image with boxes.',
)


def turns(annotation, rng, max_turns):
  """One turn: the given sentence, or all objects from left to right, `a <p>red cup</p>[...] and a <p>hat</p>[...]`."""
  del max_turns
  if 'phrases' in annotation:
    sentence, truth = _given(annotation['phrases'])
  else:
    sentence, truth = _listed(base.single(annotation['objects']))
  return [base.Turn(base.choose(INSTRUCTIONS, rng), sentence, truth)]


def _given(pieces):
  boxed = [
    (piece['text'], [base.checked_box(box) for box in piece.get('boxes', ())]) for piece in pieces
  ]
  if not any(boxes for _, boxes in boxed):
    raise BadExample(
      'nothing to ask', f'no phrase has a box in {"".join(text for text, _ in boxed)!r:.200}'
    )
  sentence = ''.join(
    coordinates.format_phrase(text, boxes) if boxes else text for text, boxes in boxed
  )
  return sentence.strip(), {
    'labels': [text for text, boxes in boxed for _ in boxes],
    'boxes': [box for _, boxes in boxed for box in boxes],
  }


def _listed(objects):
  things = sorted(objects, key=base.center)
  labels = [base.expression(item) for item in things]
  boxes = [base.checked_box(item['box']) for item in things]
  articles = [base.with_article(label).partition(' ')[0] for label in labels]
  phrases = [
    f'{article} {coordinates.format_phrase(label, [box])}'
    for article, label, box in zip(articles, labels, boxes)
  ]
  sentence = ' and '.join([', '.join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
  return sentence, {'labels': labels, 'boxes': boxes}


TASK = base.Task('grounded_caption', 'F1 at IoU 0.5', INSTRUCTIONS, turns, base.labelled_f1)
