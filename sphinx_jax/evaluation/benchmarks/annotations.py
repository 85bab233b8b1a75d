"""The official SPHINX annotation files: a JSON list of image_path, question, question_id, dataset_name, gt_answers.

    root/annotations/okvqa_val.json                       the questions, with the commonest answer
    root/data/okvqa/mscoco_val2014_annotations.json       all annotators' answers, where the protocol needs them
    root/data/...                                         the pictures, as 'image_path' says

https://huggingface.co/Alpha-VLLM/LLaMA2-Accessory (data/SPHINX/eval); the licences are those of the data sets.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks.benchmark import Question, field, rows


def read(
  name: str, root: Path, prompt: str, file: str, annotation: str | Sequence[str] | None = None
) -> list[Question]:
  """The questions of one file. Ids are positions: the official ones are not unique in all files and stay in the entry.

  Args:
    name: of the benchmark.
    root: the folder of all paths.
    prompt: with '{}' for the question.
    file: the annotation file.
    annotation: with all the annotators' answers, or several such paths of which any will do; None: 'gt_answers' is
      the whole truth.

  Raises:
    SphinxError: a file is missing or not the official one, or has no answers to one of the questions.
  """
  path = root / file
  answers = None
  if annotation is not None:
    source = files.find(name, root, *((annotation,) if isinstance(annotation, str) else annotation))
    answers = all_answers(name, source)
  questions = []
  for index, row in enumerate(files.read_json(name, path, list)):
    entry = {
      key: field(name, row, key, path)
      for key in ('image_path', 'question', 'question_id', 'gt_answers')
    }
    if answers is not None:
      if str(entry['question_id']) not in answers:
        raise errors.make(
          f"benchmark '{name}'",
          f'no answers to question {entry["question_id"]} in {str(source)!r}',
          f'answers to every question of {str(path)!r}',
          'take both files from one release',
        )
      entry['gt_answers'] = answers[str(entry['question_id'])]
    questions.append(
      Question(str(index), root / entry['image_path'], prompt.format(entry['question']), entry)
    )
  return questions


def all_answers(name: str, path: Path) -> dict[str, list[str]]:
  """{question id: every annotator's answer} of an official file.

  The forms are those of VQAv2 and OK-VQA ('annotations'), of TextVQA and DocVQA ('data'), and of VizWiz (a list whose
  pictures carry the number of the question).
  """
  value = files.read_json(name, path)
  listed = (
    value
    if isinstance(value, list)
    else rows(
      name,
      value,
      'annotations' if isinstance(value, dict) and 'annotations' in value else 'data',
      path,
    )
  )
  return {
    _question_id(name, row, path): [
      _text(name, answer, path) for answer in rows(name, row, 'answers', path)
    ]
    for row in listed
  }


def _question_id(name: str, row: Any, path: Path) -> str:
  for key in ('question_id', 'questionId'):
    if isinstance(row, dict) and key in row:
      return str(row[key])
  number = re.search(r'(\d+)\.\w+$', str(field(name, row, 'image', path)))
  return str(int(number[1])) if number else str(row['image'])


def _text(name: str, answer: Any, path: Path) -> str:
  return answer if isinstance(answer, str) else str(field(name, answer, 'answer', path))
