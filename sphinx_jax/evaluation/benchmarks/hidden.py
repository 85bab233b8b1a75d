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

from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks.benchmark import Question, required


def read_vqav2(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of VQAv2.

  Args:
    who: the benchmark, for messages.
    root: directory that all paths are relative to.
    prompt: instruction with '{}' for the question.
    file: the JSON file.
    images: path of the images up to their number.

  Raises:
    SphinxError: the file is missing or not the published one.
  """
  path = files.find(who, root, file)
  questions = []
  for row in files.read_json_list(who, path, 'questions'):
    number = int(required(who, row, 'image_id', path))
    image = f'{images}{number:012d}.jpg'
    questions.append(_question(who, root, prompt, row, 'question_id', image, path))
  return questions


def read_vizwiz(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of VizWiz: one per image, whose file name is the id.

  Args:
    who: the benchmark, for messages.
    root: directory that all paths are relative to.
    prompt: instruction with '{}' for the question.
    file: the JSON file.
    images: directory of the images.

  Raises:
    SphinxError: the file is missing or not the published one.
  """
  path = files.find(who, root, file)
  questions = []
  for row in files.read_json(who, path, list):
    image = f'{images}/{required(who, row, "image", path)}'
    questions.append(_question(who, root, prompt, row, 'image', image, path))
  return questions


def read_docvqa(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions of DocVQA. 'image' in the file starts with the directory documents.

  Args:
    who: the benchmark, for messages.
    root: directory that all paths are relative to.
    prompt: instruction with '{}' for the question.
    file: the JSON file.
    images: parent of the directory documents.

  Raises:
    SphinxError: the file is missing or not the published one.
  """
  path = files.find(who, root, file)
  questions = []
  for row in files.read_json_list(who, path, 'data'):
    image = f'{images}/{required(who, row, "image", path)}'
    questions.append(_question(who, root, prompt, row, 'questionId', image, path))
  return questions


def _question(
  who: str, root: Path, prompt: str, row: Any, id_key: str, image: str, path: Path
) -> Question:
  question_id = required(who, row, id_key, path)
  text = required(who, row, 'question', path)
  entry = {'question_id': question_id, 'question': text, 'image_path': image}
  return Question(str(question_id), root / image, prompt.format(text), entry)
