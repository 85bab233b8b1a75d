"""Phrase grounding on Flickr30k Entities: one question for every phrase that has a box, in every sentence of a split.

The tree, its licence and homepage are those of the source 'flickr30k_entities' (datasets).
"""

from pathlib import Path

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.flickr30k_entities import Flickr30kEntities
from sphinx_jax.evaluation.benchmarks.benchmark import Question


def read(name: str, root: Path, prompt: str, folder: str, split: str) -> list[Question]:
  """The phrases of a split; folder is the root of the data set. Raises SphinxError for missing or wrong files."""
  family = Flickr30kEntities(root / folder, split, 'grounded_caption')
  questions = []
  for index in range(len(family)):
    try:
      item = family.item(index)
    except (
      BadExample
    ) as error:  # A score over fewer questions than the benchmark has would be another benchmark's.
      raise errors.make(
        f"benchmark '{name}'",
        f'an item it cannot use ({error})',
        'the official files',
        'download them again',
      ) from error
    width, height = (int(side) for side in item.annotation['size'])
    place = Path(item.image).relative_to(root)
    for number, phrase in enumerate(item.annotation['phrases']):
      if phrase['boxes']:
        entry = {
          'image_path': place.as_posix(),
          'question': phrase['text'],
          'width': width,
          'height': height,
          'gt_answers': [list(box) for box in phrase['boxes']],
        }
        questions.append(
          Question(f'{item.id}-{number}', item.image, prompt.format(phrase['text'].strip()), entry)
        )
  return questions
