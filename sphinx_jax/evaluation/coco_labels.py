"""Boxes of answers as a COCO file: https://cocodataset.org/#format-data.

Such a file is read by pycocotools, by labelling tools, and as a dataset by datasets/coco.py.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from sphinx_jax.core import errors, files

UNNAMED = 'object'  # Category of a box without a label.
_BEGIN = b'{"info": {"description": "answers of sphinx_jax.predict"}'


def check(path: files.Path) -> None:
  """Raises SphinxError if a path is a file that `write` did not write."""
  try:
    with epath.Path(path).open('rb') as file:
      begin = file.read(len(_BEGIN))
  except FileNotFoundError:
    return
  if begin != _BEGIN:
    raise errors.make(
      f"--coco '{path}'", 'a file of something else', 'a new file', 'give another name'
    )


def write(path: files.Path, lines: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
  """Writes the boxes of lines, which are read twice and never all in memory.

  Args:
    path: the file. It has `images` (`file_name` as given; images of failed lines are left out),
      `annotations` (`bbox` [x, y, width, height] in pixels, `score` 1) and `categories`, one for
      each label.
    lines: returns an iterator over lines with `image`, `width`, `height` and `boxes`.

  Raises:
    SphinxError: it cannot be written.
  """
  numbers: dict[str, int] = {}  # Of images, which may be in several lines.
  categories: dict[str, int] = {}

  def images() -> Iterator[dict[str, Any]]:
    for line in lines():
      if 'boxes' not in line:
        continue
      for box in line['boxes']:
        categories.setdefault(box['label'] or UNNAMED, len(categories) + 1)
      if line['image'] not in numbers:
        numbers[line['image']] = len(numbers) + 1
        yield {
          'id': numbers[line['image']],
          'file_name': line['image'],
          'width': line['width'],
          'height': line['height'],
        }

  def annotations() -> Iterator[dict[str, Any]]:
    count = itertools.count(1)
    for line in lines():
      for box in line.get('boxes', ()):
        x1, y1, x2, y2 = box['box']
        width, height = round(x2 - x1, 2), round(y2 - y1, 2)
        yield {
          'id': next(count),
          'image_id': numbers[line['image']],
          'category_id': categories[box['label'] or UNNAMED],
          'bbox': [x1, y1, width, height],
          'area': round(width * height, 2),
          'iscrowd': 0,
          'score': 1.0,
        }

  with files.open_atomic(path) as file:
    file.write(_BEGIN)
    for key, values in (('images', images()), ('annotations', annotations())):
      file.write(f', "{key}": ['.encode())
      for number, value in enumerate(values):
        file.write((',\n' if number else '\n').encode() + json.dumps(value).encode())
      file.write(b']')
    named = [{'id': number, 'name': name} for name, number in categories.items()]
    file.write(b', "categories": ' + json.dumps(named).encode() + b'}\n')
