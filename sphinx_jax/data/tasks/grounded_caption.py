"""Grounded captioning: a sentence whose phrases carry their boxes, `a <p>red circle</p>[...]` (Flickr30k Entities)."""

from sphinx_jax.core import coordinates
from sphinx_jax.data.tasks import base

INSTRUCTIONS = (
    'Describe the image with grounded boxes.',
    'Describe the image and give a box for each thing.',
    'Write a grounded caption.',
    'Caption the image with boxes.',
)


def turns(annotation, rng, max_turns):
  """One turn: all objects from left to right, `a <p>red circle</p>[...], a <p>blue cup</p>[...] and ...`."""
  del max_turns
  things = sorted(annotation['objects'], key=base.center)
  labels = [base.expression(item) for item in things]
  boxes = [base.checked_box(item['box']) for item in things]
  articles = [base.with_article(label).partition(' ')[0] for label in labels]
  phrases = [f'{article} {coordinates.format_phrase(label, [box])}'
             for article, label, box in zip(articles, labels, boxes)]
  sentence = ' and '.join([', '.join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
  return [base.Turn(base.choose(INSTRUCTIONS, rng), sentence, {'labels': labels, 'boxes': boxes})]


TASK = base.Task('grounded_caption', 'F1 at IoU 0.5', INSTRUCTIONS, turns, base.labelled_f1)
