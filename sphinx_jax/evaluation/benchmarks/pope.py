"""POPE's files: one JSON object per line with question_id, image, text, label.

    root/data/pope/coco_pope_random.json      also _popular, _adversarial
    root/data/coco/val2014/COCO_val2014_000000000042.jpg

Licence: MIT; the images are COCO's.
Homepage: https://github.com/RUCAIBox/POPE
"""

import json
from pathlib import Path

from sphinx_jax.core import errors
from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks.benchmark import Question, required


def read(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of one file.

  Args:
    who: the benchmark, for messages.
    root: directory that all paths are relative to.
    prompt: instruction with '{}' for the question.
    file: the file.
    images: directory of the images.

  Raises:
    SphinxError: the file is missing or not the published one.
  """
  path = files.find(who, root, file)
  questions = []
  for index, line in enumerate(path.read_text().splitlines()):
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.make(
        who,
        f'line {index + 1} of {str(path)!r}, which is not JSON ({error})',
        'the published file',
        'download it again',
      ) from error
    text = required(who, row, 'text', path)
    image_path = f'{images}/{required(who, row, "image", path)}'
    entry = {
      'question_id': required(who, row, 'question_id', path),
      'question': text,
      'image_path': image_path,
      'gt_answers': required(who, row, 'label', path),
    }
    questions.append(Question(str(index), root / image_path, prompt.format(text), entry))
  return questions
