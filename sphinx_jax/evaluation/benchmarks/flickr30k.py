"""Phrase grounding on Flickr30k Entities.

There is one question for every phrase with a box, in every sentence.

The tree, the licence and the homepage are in datasets/flickr30k_entities.py.
"""

from pathlib import Path

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.flickr30k_entities import Flickr30kEntities
from sphinx_jax.evaluation.benchmarks.benchmark import Question


def read(who: str, root: Path, prompt: str, folder: str, split: str) -> list[Question]:
  """Returns the phrases of a split of the dataset in root/folder."""
  family = Flickr30kEntities(root / folder, split, 'grounded_caption')
  questions = []
  for index in range(len(family)):
    try:
      item = family.item(index)
    except BadExample as error:  # A score over fewer questions would not be comparable.
      raise errors.make(
        who, f'an item it cannot use ({error})', 'the published files', 'download them again'
      ) from error
    width, height = (int(side) for side in item.annotation['size'])
    image_path = Path(item.images[0]).relative_to(root).as_posix()
    for number, phrase in enumerate(item.annotation['phrases']):
      if not phrase['boxes']:
        continue
      entry = {
        'image_path': image_path,
        'question': phrase['text'],
        'width': width,
        'height': height,
        'gt_answers': [list(box) for box in phrase['boxes']],
      }
      text = prompt.format(phrase['text'].strip())
      questions.append(Question(f'{item.id}-{number}', item.images, text, entry))
  return questions
