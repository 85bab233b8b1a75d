"""Benchmarks in the official annotation form, with small pictures, for tests."""

import json

import numpy as np
from PIL import Image

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
  """root/annotations/colors.json and the pictures it names: question i is about a red picture where i is odd."""
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
