"""POPE's files: one JSON object per line with question_id, image, text, label.

    root/data/pope/coco_pope_random.json      also _popular, _adversarial
    root/data/coco/val2014/COCO_val2014_000000000042.jpg

Licence: MIT; the images are COCO's.
Homepage: https://github.com/RUCAIBox/POPE
"""

import json
from pathlib import Path

from sphinx_jax.core import errors
from sphinx_jax.evaluation.benchmarks.benchmark import PublishedFile, Question


def read(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of one file."""
  published = PublishedFile.find(who, root, file)
  questions = []
  for index, line in enumerate(published.path.read_text().splitlines()):
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.make(
        who,
        f'line {index + 1} of {str(published.path)!r}, which is not JSON ({error})',
        'the published file',
        'download it again',
      ) from error
    text = published.required(row, 'text')
    image_path = f'{images}/{published.required(row, "image")}'
    entry = {
      'question_id': published.required(row, 'question_id'),
      'question': text,
      'image_path': image_path,
      'gt_answers': published.required(row, 'label'),
    }
    questions.append(Question(str(index), root / image_path, prompt.format(text), entry))
  return questions
