"""MME: accuracy and accuracy of pairs, by subtask and summed."""

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PROTOCOLS, mme


def entries(subtask, pairs):
  """Two questions an image, the first 'Yes' and the second 'No', with an answer to each."""
  return [
    {'image_path': f'./data/MME/{subtask}/images/{i}.jpg', 'gt_answers': truth, 'answer': answer}
    for i, pair in enumerate(pairs)
    for truth, answer in zip(('Yes', 'No'), pair, strict=True)
  ]


@pytest.mark.parametrize(
  'answer, word',
  [
    ('Yes', 'yes'),
    ('no.', 'no'),
    ('YES, it is', 'yes'),
    (' yes', 'yes'),
    ('', 'other'),
    ('maybe', 'other'),
    ('It is not', 'other'),
    ('The answer is yes', 'other'),
    ('know', 'no'),  # Anywhere in the first four characters, as in the benchmark's tool.
  ],
)
def test_yes_and_no_are_read_from_the_first_four_characters(answer, word):
  assert mme.yes_or_no(answer) == word


def test_scores_are_accuracy_plus_accuracy_of_pairs_summed_over_subtasks():
  lines = (
    entries('existence', [('yes', 'no'), ('yes', 'yes'), ('maybe', 'no'), ('no', 'yes')])
    + entries('OCR', [('Yes.', 'No, it is not')])
    + entries('code_reasoning', [('yes', 'no'), ('yes', 'yes')])
  )
  scores = PROTOCOLS['mme_score'](lines)
  assert (scores['existence acc'], scores['existence acc+'], scores['existence']) == (0.5, 0.25, 75)
  assert scores['OCR'] == 200 and scores['code_reasoning'] == 125
  assert (scores['perception'], scores['cognition'], scores['total']) == (275, 125, 400)
  assert PROTOCOLS['mme_score'](lines[::-1], official=True) == scores


def test_a_perfect_run_has_the_benchmarks_best_score():
  lines = [
    line
    for names in mme.SUBTASKS.values()
    for name in names
    for line in entries(name, [('yes', 'no')] * 3)
  ]
  scores = PROTOCOLS['mme_score'](lines)
  assert (scores['perception'], scores['cognition']) == (2000, 800)


@pytest.mark.parametrize(
  'lines, message',
  [
    ([], 'no entries'),
    (entries('OCR', [('yes', 'no')])[:1], '1 questions'),
    (entries('dogs', [('yes', 'no')]), 'no folder of a subtask'),
    (
      [dict(line, gt_answers='maybe') for line in entries('OCR', [('yes', 'no')])],
      "true answer 'maybe'",
    ),
  ],
)
def test_entries_that_cannot_be_scored_are_an_error(lines, message):
  with pytest.raises(SphinxError, match=message):
    PROTOCOLS['mme_score'](lines)
