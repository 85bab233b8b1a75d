"""Test sets whose answers are kept back: the questions, and what a submission file needs to name them.

    root/data/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json     {'questions': [{image_id, question, question_id}]}
    root/data/coco/test2015/COCO_test2015_000000262144.jpg
    root/data/vizwiz/test.json, test/VizWiz_test_00000000.jpg           [{image, question}]
    root/data/docvqa/test/test_v1.0.json, documents/xnbl0037_1.png      {'data': [{questionId, question, image}]}

https://visualqa.org, https://vizwiz.org, https://www.docvqa.org (CC BY 4.0; DocVQA after registration).
"""

from pathlib import Path

from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks.benchmark import Question, field, rows


def read_vqav2(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """VQAv2; images is the folder and the name of its pictures up to their number. Raises SphinxError for a wrong file."""
  path = files.find(name, root, file)
  return [
    _question(
      name,
      root,
      prompt,
      row,
      'question_id',
      f'{images}{int(field(name, row, "image_id", path)):012d}.jpg',
      path,
    )
    for row in rows(name, files.read_json(name, path, dict), 'questions', path)
  ]


def read_vizwiz(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """VizWiz, which asks one question a picture and names it by the picture. Raises SphinxError for a wrong file."""
  path = files.find(name, root, file)
  return [
    _question(name, root, prompt, row, 'image', f'{images}/{field(name, row, "image", path)}', path)
    for row in files.read_json(name, path, list)
  ]


def read_docvqa(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """DocVQA; 'image' in the file starts with the folder documents. Raises SphinxError for a wrong file."""
  path = files.find(name, root, file)
  return [
    _question(
      name, root, prompt, row, 'questionId', f'{images}/{field(name, row, "image", path)}', path
    )
    for row in rows(name, files.read_json(name, path, dict), 'data', path)
  ]


def _question(name, root, prompt, row, key, image, path):
  number, text = field(name, row, key, path), field(name, row, 'question', path)
  entry = {'question_id': number, 'question': text, 'image_path': image}
  return Question(str(number), root / image, prompt.format(text), entry)
