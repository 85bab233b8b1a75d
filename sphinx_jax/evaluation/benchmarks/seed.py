"""SEED-Bench's file: the questions about images (9 of its 12 types).

    root/data/SEED_Bench/SEED-Bench.json
      {'questions': [{question_id, question, choice_a, ..., answer, data_id, data_type,
                      question_type_id}]}
    root/data/SEED_Bench/SEED-Bench-image/<data_id>

Licence: CC BY-NC 4.0.
Homepage: https://github.com/AILab-CVC/SEED-Bench
"""

from pathlib import Path

from sphinx_jax.core import errors
from sphinx_jax.evaluation.benchmarks.benchmark import PublishedFile, Question
from sphinx_jax.tasks.questions import ask


def read(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns the questions about images.

  Raises:
    SphinxError: the file is missing or not the published one.
  """
  published = PublishedFile.find(who, root, file)
  questions = []
  for row in published.rows('questions'):
    if published.required(row, 'data_type') != 'image':
      continue
    question_id = published.required(row, 'question_id')
    text = published.text(row, 'question')
    image_path = f'{images}/{published.required(row, "data_id")}'
    choices = {letter.upper(): published.text(row, f'choice_{letter}') for letter in 'abcd'}
    answer = published.text(row, 'answer').strip().upper()
    if answer not in choices:
      raise errors.make(
        who, f'answer {answer!r:.80} to question {question_id}', 'A, B, C or D', 'check its file'
      )
    entry = {
      'question_id': question_id,
      'question': text,
      'choices': choices,
      'image_path': image_path,
      'gt_answers': answer,
      'question_type_id': published.number(row, 'question_type_id'),
    }
    asked = ask(prompt, text, choices)
    questions.append(Question(str(question_id), (root / image_path,), asked, entry))
  return questions
