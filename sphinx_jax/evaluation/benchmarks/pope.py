"""POPE's official files: one JSON object a line with question_id, image, text, label.

    root/data/pope/coco_pope_random.json      also _popular, _adversarial
    root/data/coco/val2014/COCO_val2014_000000000042.jpg

https://github.com/RUCAIBox/POPE (MIT; the pictures are COCO's).
"""

import json
from pathlib import Path

from sphinx_jax.core import errors
from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks.benchmark import Question, field


def read(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """The questions of one file; images is the folder of the pictures. Raises SphinxError for a missing or wrong file."""
  path = files.find(name, root, file)
  questions = []
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.make(
        f"benchmark '{name}'",
        f'line {number} of {str(path)!r}, which is no JSON ({error})',
        'the official file',
        'download it again',
      ) from error
    text, image, label, key = (
      field(name, row, key, path) for key in ('text', 'image', 'label', 'question_id')
    )
    entry = {
      'question_id': key,
      'question': text,
      'image_path': f'{images}/{image}',
      'gt_answers': label,
    }
    questions.append(Question(str(number - 1), root / images / image, prompt.format(text), entry))
  return questions
