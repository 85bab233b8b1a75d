"""Test sets with hidden answers: the questions, and the ids that a submission file needs.

    root/data/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json     {'questions': [{image_id,
                                                                        question, question_id}]}
    root/data/coco/test2015/COCO_test2015_000000262144.jpg
    root/data/vizwiz/test.json, test/VizWiz_test_00000000.jpg           [{image, question}]
    root/data/docvqa/test/test_v1.0.json, documents/xnbl0037_1.png      {'data': [{questionId,
                                                                        question, image}]}

The families of these datasets (datasets/) cannot serve here: they group the questions by image,
strip their text and drop repetitions. A submission keeps the published order, text and ids.

Homepages: https://visualqa.org, https://vizwiz.org, https://www.docvqa.org (CC BY 4.0; DocVQA after
registration).
"""

from pathlib import Path
from typing import Any

from sphinx_jax.evaluation.benchmarks.benchmark import PublishedFile, Question


def read_vqav2(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of VQAv2. `images` is the path of the images up to their number."""
  published = PublishedFile.find(who, root, file)
  questions = []
  for row in published.rows('questions'):
    image = f'{images}{published.number(row, "image_id"):012d}.jpg'
    questions.append(_question(published, root, prompt, row, 'question_id', image))
  return questions


def read_vizwiz(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of VizWiz: one per image, whose file name is the id."""
  published = PublishedFile.find(who, root, file)
  questions = []
  for row in published.rows():
    image = f'{images}/{published.required(row, "image")}'
    questions.append(_question(published, root, prompt, row, 'image', image))
  return questions


def read_docvqa(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of DocVQA. 'image' in the file starts with the directory documents."""
  published = PublishedFile.find(who, root, file)
  questions = []
  for row in published.rows('data'):
    image = f'{images}/{published.required(row, "image")}'
    questions.append(_question(published, root, prompt, row, 'questionId', image))
  return questions


def _question(
  published: PublishedFile, root: Path, prompt: str, row: Any, id_key: str, image: str
) -> Question:
  question_id = published.required(row, id_key)
  if id_key != 'image':
    published.number(row, id_key)  # The file to submit has it as a number.
  text = published.text(row, 'question')
  entry = {'question_id': question_id, 'question': text, 'image_path': image}
  return Question(str(question_id), (root / image,), prompt.format(text), entry)
