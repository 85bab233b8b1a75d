"""SEED-Bench's file: the questions about images (9 of its 12 types).

    root/data/SEED_Bench/SEED-Bench.json
      {'questions': [{question_id, question, choice_a, ..., answer, data_id, data_type,
                      question_type_id}]}
    root/data/SEED_Bench/SEED-Bench-image/<data_id>

Licence: CC BY-NC 4.0.
Homepage: https://github.com/AILab-CVC/SEED-Bench
"""

from pathlib import Path

from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks.benchmark import Question, required
from sphinx_jax.tasks.questions import official_choice_question


def read(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions about images.

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
  for row in files.read_json_list(who, path, 'questions'):
    if required(who, row, 'data_type', path) != 'image':
      continue
    question_id = required(who, row, 'question_id', path)
    text = required(who, row, 'question', path)
    image_path = f'{images}/{required(who, row, "data_id", path)}'
    choices = {letter.upper(): required(who, row, f'choice_{letter}', path) for letter in 'abcd'}
    entry = {
      'question_id': question_id,
      'question': text,
      'choices': choices,
      'image_path': image_path,
      'gt_answers': required(who, row, 'answer', path),
      'question_type_id': required(who, row, 'question_type_id', path),
    }
    asked = prompt.format(official_choice_question(text, choices))
    questions.append(Question(str(question_id), root / image_path, asked, entry))
  return questions
