"""VQA accuracy: the goldens of the official evaluator, and where the definition differs from it."""

import json
import pathlib

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PROTOCOLS, vqa

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / 'golden/eval/vqa.json').read_text())
# Samples whose annotators agree only after the full normalization, and their score by definition.
DIFFERENT = {1008: 1.0, 1014: 1.0}


@pytest.mark.parametrize('case', GOLDEN['normalisation'], ids=lambda case: repr(case['in']))
def test_normalization_is_that_of_the_toolkit(case):
  text = case['in'].replace('\n', ' ').replace('\t', ' ').strip()
  assert vqa.remove_punctuation(text) == case['after_punct']
  assert vqa.normalize(case['in']) == case['after_digit_article']


@pytest.mark.parametrize(
  'text, normal',
  [
    ("couldn'tve been", "couldn't've been"),
    ("couldnt've", "couldn't've"),
    ("'owsat", "'owsat"),
    ("ow's'at", "'ow's'at"),
    ("somebody'd", 'somebodyd'),
    ('shed', 'shed'),
    ('twas', "'twas"),  # At most one apostrophe, and only of the table.
    ('1,5 - 2;3', '15 23'),  # One comma between digits drops every mark of the answer.
    ('٣,٤', '٣٤'),
    ('Zwölf-Ä.', 'zwölf ä'),
    ('.5 .a', '.5'),
    ('.' * 33, '.'),
  ],
)
def test_corner_cases_of_the_normalization(text, normal):
  assert vqa.normalize(text) == normal


@pytest.mark.parametrize('sample', GOLDEN['samples'], ids=lambda sample: str(sample['question_id']))
def test_official_scores_are_the_goldens_and_the_definition_differs_only_as_listed(sample):
  answer, truths = sample['answer'], sample['gt_answers']
  golden = sample['score'] / 100
  assert round(vqa.vqa_accuracy(answer, truths, official=True), 4) == golden
  assert vqa.vqa_accuracy(answer, truths) == pytest.approx(
    DIFFERENT.get(sample['question_id'], golden)
  )


@pytest.mark.parametrize(
  'answer, truths',
  [
    ('t-shirt', ['t-shirt'] * 10),
    ('Two.', ['Two.'] * 10),
    ('The dog', ['The dog', 'A dog'] * 5),
  ],
)
def test_difference_the_definition_normalizes_the_annotators_too(answer, truths):
  assert vqa.vqa_accuracy(answer, truths) == 1 > vqa.vqa_accuracy(answer, truths, official=True)


@pytest.mark.parametrize('matches, accuracy', enumerate([0, 0.3, 0.6, 0.9, 1, 1]))
def test_every_annotator_is_left_out_once(matches, accuracy):
  truths = ['red'] * matches + [f'other {i}' for i in range(10 - matches)]
  assert (
    vqa.vqa_accuracy('Red.', truths)
    == vqa.vqa_accuracy('Red.', truths, official=True)
    == pytest.approx(accuracy)
  )


def test_the_single_answer_of_the_annotation_files_is_refused():
  with pytest.raises(SphinxError, match='every annotator'):
    vqa.vqa_accuracy('yes', 'yes')
  with pytest.raises(SphinxError, match='every annotator'):
    vqa.vqa_accuracy('yes', ['yes'])


def test_the_protocol_averages():
  entries = [
    {'answer': 'yes', 'gt_answers': ['Yes.'] * 10},
    {'answer': 'no', 'gt_answers': ['yes'] * 10},
  ]
  assert PROTOCOLS['vqa_score'](entries) == {'vqa_score': 0.5}
  assert PROTOCOLS['vqa_score'](entries, official=True) == {'vqa_score': 0.0}
