"""Files to submit to the servers of test sets with hidden answers.

A file is made only if every question of the benchmark has exactly one answer. Servers reject other
files, or score them wrongly.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sphinx_jax.core import errors


def submission(name: str, entries: Sequence[dict], ids: Iterable[str]) -> tuple[str, bytes]:
  """Returns (file name, content) of the file to submit for a benchmark.

  Args:
    name: name of the benchmark, in `SUBMISSIONS`.
    entries: prediction lines with 'id', 'question_id' and 'answer'.
    ids: ids of all questions of the benchmark (`Question.id`).

  Raises:
    SphinxError: the benchmark has no submission format, a question has no answer or two of them,
      or an answer belongs to another question.
  """
  if name not in SUBMISSIONS:
    raise errors.unknown('submission file for', name, SUBMISSIONS)
  counts, expected = Counter(entry['id'] for entry in entries), set(ids)
  problems = {
    'without an answer': expected - set(counts),
    'not in the benchmark': set(counts) - expected,
    'with two answers': {key for key, count in counts.items() if count > 1},
  }
  for problem, questions in problems.items():
    if questions:
      raise errors.make(
        f"submission for '{name}'",
        f"{len(questions)} questions {problem}, for example '{min(questions)}'",
        f'one answer to each of {len(expected)}',
        'finish the predictions, or start them again',
      )
  content = [SUBMISSIONS[name](entry) for entry in entries]
  return f'{name}_submission.json', json.dumps(content).encode()


def _vqav2(entry: dict) -> dict[str, Any]:
  return {'question_id': int(entry['question_id']), 'answer': entry['answer']}


def _vizwiz(entry: dict) -> dict[str, Any]:
  return {'image': entry['question_id'], 'answer': entry['answer']}


def _docvqa(entry: dict) -> dict[str, Any]:
  return {'questionId': int(entry['question_id']), 'answer': entry['answer']}


# Benchmark -> function from a prediction line to an item of the file.
SUBMISSIONS: dict[str, Callable[[dict], dict[str, Any]]] = {
  'vqav2_testdev': _vqav2,
  'vizwiz_test': _vizwiz,
  'docvqa_test': _docvqa,
}
