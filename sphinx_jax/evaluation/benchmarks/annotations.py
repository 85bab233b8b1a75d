"""The official SPHINX annotation files.

    root/annotations/okvqa_val.json                       JSON list of {image_path, question,
                                                          question_id, dataset_name, gt_answers},
                                                          with the most common answer
    root/data/okvqa/mscoco_val2014_annotations.json       all annotators' answers, if the protocol
                                                          needs them
    root/data/...                                         the images, as in image_path

Licence: those of the datasets.
Homepage: https://huggingface.co/Alpha-VLLM/LLaMA2-Accessory (data/SPHINX/eval)
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import boxes, errors
from sphinx_jax.datasets import files
from sphinx_jax.datasets.fields import as_id
from sphinx_jax.evaluation.benchmarks.benchmark import PublishedFile, Question

_KEYS = ('image_path', 'question', 'question_id', 'gt_answers')


def read(
  who: str, root: Path, prompt: str, file: str, annotation: str | Sequence[str] | None = None
) -> list[Question]:
  """Returns the questions of one file.

  The official ids are not unique in every file. They stay in the entry, and `Question.id` is the
  position in the file.

  `annotation` is the file of all annotators' answers, or several paths of which the first that
  exists is read. With None, 'gt_answers' is the complete truth.

  Raises:
    SphinxError: a file is missing or not the official one, or has no answers to a question.
  """
  published = PublishedFile(who, root / file)
  answers = None
  if annotation is not None:
    answers_file = PublishedFile.find(who, root, annotation)
    answers = all_answers(answers_file)
  questions = []
  for index, row in enumerate(published.rows()):
    entry = {key: published.required(row, key) for key in _KEYS}
    question, image_path = published.text(row, 'question'), published.text(row, 'image_path')
    truth = entry['gt_answers']
    if not isinstance(truth, list):
      entry['gt_answers'] = published.text(row, 'gt_answers')
    elif not boxes.is_box(truth):
      entry['gt_answers'] = [published.text({'gt_answers': item}, 'gt_answers') for item in truth]
    if answers is not None:
      question_id = str(as_id(entry['question_id']))
      if question_id not in answers:
        raise errors.make(
          who,
          f'no answers to question {question_id} in {str(answers_file.path)!r}',
          f'answers to every question of {str(published.path)!r}',
          'take both files from one release',
        )
      entry['gt_answers'] = answers[question_id]
    text = prompt.format(question)
    questions.append(Question(str(index), (root / image_path,), text, entry))
  return questions


def all_answers(published: PublishedFile) -> dict[str, list[str]]:
  """Returns every annotator's answer, by question id, from a dataset's own file.

  The formats are those of VQAv2 and OK-VQA ('annotations'), of TextVQA and DocVQA ('data'), and of
  VizWiz (a list; the image file has the number of the question).
  """
  value = files.read_json(published.who, published.path)
  if isinstance(value, list):
    rows = value
  elif isinstance(value, dict) and 'annotations' in value:
    rows = published.required_list(value, 'annotations')
  else:
    rows = published.required_list(value, 'data')
  result: dict[str, list[str]] = {}
  for row in rows:
    question_id = _question_id(published, row)
    answers = [
      _answer_text(published, answer) for answer in published.required_list(row, 'answers')
    ]
    if result.setdefault(question_id, answers) != answers:
      raise errors.make(
        published.who,
        f'two lists of answers to question {question_id} in {str(published.path)!r}',
        'one',
        'take the published file',
      )
  return result


def _question_id(published: PublishedFile, row: Any) -> str:
  for key in ('question_id', 'questionId'):
    if isinstance(row, dict) and key in row:
      return str(as_id(row[key]))
  image = str(published.required(row, 'image'))
  number = re.search(r'(\d+)\.\w+$', image)
  return str(int(number[1])) if number else image


def _answer_text(published: PublishedFile, answer: Any) -> str:
  return answer if isinstance(answer, str) else published.text(answer, 'answer')
