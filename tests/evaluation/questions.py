"""A small benchmark of colors in the official annotation form, and a stand-in for a model."""

import json

import numpy as np
from PIL import Image

from sphinx_jax.generate.model import Model
from tests.generate import small

COLORS = {'red': (250, 10, 10), 'blue': (10, 10, 250)}
SETTINGS = dict(
  reader='annotations',
  file='annotations/colors.json',
  prompt='{}\nAnswer shortly.',
  prefix='',
  max_new_tokens=6,
  protocol='accuracy',
  metric='accuracy',
  published=None,
  variant='',
  note='',
)


def write(root, count=10):
  """Writes root/annotations/colors.json and its images; image i is red if i is odd, else blue."""
  (root / 'annotations').mkdir(parents=True, exist_ok=True)
  (root / 'data').mkdir(exist_ok=True)
  rows = []
  for i in range(count):
    color = 'red' if i % 2 else 'blue'
    Image.fromarray(np.full((8, 12, 3), COLORS[color], np.uint8)).save(root / 'data' / f'{i}.png')
    rows.append(
      {
        'image_path': f'data/{i}.png',
        'question': 'What is the color?' + ' Say it.' * (i % 3),
        'question_id': -1,
        'dataset_name': 'colors',
        'gt_answers': color,
      }
    )
  (root / 'annotations' / 'colors.json').write_text(json.dumps(rows))
  return root


class Painter:
  """Stands for a model that recognizes colors.

  Args:
    calls: number of calls after which it is killed, or None.

  Attributes:
    prompts: the decoded prompts so far.
    images: the images so far.
  """

  template, tokenizer = small.model().template, small.tokenizer()
  config = small.config()
  visual_tokens, max_length, alpha = 3, 256, 'drop'

  def __init__(self, calls=None):
    self.calls, self.prompts, self.images = calls, [], []

  slot_rule = small.model().slot_rule
  prompt_of, read_image, _slots = Model.prompt_of, Model.read_image, Model._slots

  @property
  def _template(self):
    return self.template

  def complete(self, prompts, images, **options):
    if self.calls == 0:
      raise KeyboardInterrupt
    self.calls = None if self.calls is None else self.calls - 1
    self.prompts += [self.tokenizer.decode(prompt.ids) for prompt in prompts]
    pixels = [[image.pixels[0] for image in of_row] for of_row in images]
    self.images += [of_row[0] if of_row else None for of_row in pixels]
    return [' '.join(map(color, of_row)) for of_row in pixels]


def color(image):
  """The name of the color of most pixels."""
  red, _, blue = np.median(image, axis=(0, 1))
  return 'red' if red > 200 else 'blue' if blue > 200 else 'gray'
