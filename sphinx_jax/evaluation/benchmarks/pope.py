"""POPE's files: one JSON object per line with question_id, image, text, label.

    root/data/pope/coco_pope_random.json      also _popular, _adversarial
    root/data/coco/val2014/COCO_val2014_000000000042.jpg

Licence: MIT; the images are COCO's.
Homepage: https://github.com/RUCAIBox/POPE
"""

from pathlib import Path

from sphinx_jax.core import files
from sphinx_jax.evaluation.benchmarks.benchmark import PublishedFile, Question


def read(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of one file."""
  published = PublishedFile.find(who, root, file)
  questions = []
  for index, row in enumerate(files.read_jsonl(published.path, who=who)):
    text = published.text(row, 'text')
    image_path = f'{images}/{published.text(row, "image")}'
    entry = {
      'question_id': published.required(row, 'question_id'),
      'question': text,
      'image_path': image_path,
      'gt_answers': published.text(row, 'label'),
    }
    questions.append(Question(str(index), (root / image_path,), prompt.format(text), entry))
  return questions
