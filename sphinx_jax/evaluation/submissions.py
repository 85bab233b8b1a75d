"""Files to hand in where a test set's answers are kept back, in the form its server takes.

A file is made only when every question of the benchmark has exactly one answer: servers refuse or misjudge others.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from sphinx_jax.core import errors


def submission(name: str, entries: Sequence[dict], ids: Iterable[str]) -> tuple[str, bytes]:
  """(file name, bytes) to hand in for a benchmark.

  Args:
    name: in `SUBMISSIONS`.
    entries: lines of predictions, with 'id', 'question_id' and 'answer'.
    ids: of all questions of the benchmark (`Question.id`).

  Raises:
    SphinxError: no submission file is known for this benchmark; a question without an answer or with two; an answer to
      another question.
  """
  if name not in SUBMISSIONS:
    raise errors.unknown('submission file for', name, SUBMISSIONS)
  counts, wanted = Counter(entry['id'] for entry in entries), set(ids)
  for wrong, what in (
    (wanted - set(counts), 'without an answer'),
    (set(counts) - wanted, 'not in the benchmark'),
    ({key for key, count in counts.items() if count > 1}, 'with two answers'),
  ):
    if wrong:
      raise errors.make(
        f"submission for '{name}'",
        f"{len(wrong)} questions {what}, such as '{min(wrong)}'",
        f'one answer to each of {len(wanted)}',
        'finish the predictions, or start them anew',
      )
  return f'{name}_submission.json', json.dumps(
    [SUBMISSIONS[name](entry) for entry in entries]
  ).encode()


def _vqav2(entry):
  return {'question_id': int(entry['question_id']), 'answer': entry['answer']}


def _vizwiz(entry):
  return {'image': entry['question_id'], 'answer': entry['answer']}


def _docvqa(entry):
  return {'questionId': int(entry['question_id']), 'answer': entry['answer']}


# Benchmark -> how one line of its file is made from a prediction.
SUBMISSIONS: dict[str, Callable[[dict], dict]] = {
  'vqav2_testdev': _vqav2,
  'vizwiz_test': _vizwiz,
  'docvqa_test': _docvqa,
}
