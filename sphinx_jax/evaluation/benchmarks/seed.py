"""SEED-Bench's official file, the questions about pictures (9 of its 12 types).

    root/data/SEED_Bench/SEED-Bench.json
      {'questions': [{question_id, question, choice_a, ..., answer, data_id, data_type, question_type_id}]}
    root/data/SEED_Bench/SEED-Bench-image/<data_id>

https://github.com/AILab-CVC/SEED-Bench (CC BY-NC 4.0).
"""

from pathlib import Path

from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks import choices
from sphinx_jax.evaluation.benchmarks.benchmark import Question, field, rows


def read(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """The questions about pictures, which lie in the folder images. Raises SphinxError for a missing or wrong file."""
  path = files.find(name, root, file)
  questions = []
  for row in rows(name, files.read_json(name, path, dict), 'questions', path):
    if field(name, row, 'data_type', path) != 'image':
      continue
    key, text, image, answer, kind = (
      field(name, row, part, path)
      for part in ('question_id', 'question', 'data_id', 'answer', 'question_type_id')
    )
    offered = {letter.upper(): field(name, row, f'choice_{letter}', path) for letter in 'abcd'}
    entry = {
      'question_id': key,
      'question': text,
      'choices': offered,
      'image_path': f'{images}/{image}',
      'gt_answers': answer,
      'question_type_id': kind,
    }
    questions.append(
      Question(str(key), root / images / image, prompt.format(choices.write(text, offered)), entry)
    )
  return questions
